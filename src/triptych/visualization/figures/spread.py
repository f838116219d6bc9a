"""How views spread over the image from level to level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from triptych.palette import OTHER_COLOURS
from triptych.visualization.style import NEUTRAL, faint_grid, new_figure, styled

# Groups of tokens keep their colours in every figure.
TOKEN_COLOURS = {
    "class token": NEUTRAL,
    "object tokens": OTHER_COLOURS[0],
    "background tokens": OTHER_COLOURS[1],
}
_PANELS = (
    ("effective_share", "effective patches (share of all)", "linear"),
    ("self_share", "share of the own patch", "log"),
    ("object_ratio", "object over background share", "log"),
)


@styled
def spread_figure(rows: Sequence[Mapping[str, object]], *, title: str = "") -> Figure:
    """Effective patches, own share and object ratio by level, a line for each group of tokens.

    Args:
        rows: ``level``, ``tokens`` (a group) and the three numbers, None where there is none.
    """
    figure = new_figure(9.6, 3.1)
    for axes, (key, label, scale) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for group, colour in TOKEN_COLOURS.items():
            points = [
                (row["level"], row[key])
                for row in rows
                if row["tokens"] == group and row[key] is not None
            ]
            if points:
                levels, values = zip(*points, strict=True)
                axes.plot(levels, values, "o-", color=colour, label=group, markersize=4)
        axes.set_yscale(scale)
        if key == "effective_share":
            axes.set_ylim(0, 1.02)
            axes.legend(frameon=False)
        if key == "object_ratio":
            axes.axhline(1, color=NEUTRAL, linestyle="--", linewidth=0.8)
        axes.set_xlabel("level (0: patch embedding)")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        faint_grid(axes)
    if title:
        figure.suptitle(title)
    return figure
