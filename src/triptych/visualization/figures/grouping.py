"""Grouping measures by layer: lines with bands, a panel for each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from triptych.palette import OTHER_COLOURS
from triptych.visualization.style import NEUTRAL, faint_grid, new_figure, styled

Row = Mapping[str, object]
_TITLES = {
    "purity": "purity",
    "unique_label_rate": "unique label rate",
    "clusters_per_object": "clusters per object",
    "in_cluster_cosine": "cosine similarity in clusters",
    "in_object_cosine": "cosine similarity in objects",
    "silhouette": "silhouette",
    "neighbour_purity": "neighbours on the same object",
}
_MARKERS = "oosv^D"


@styled
def grouping_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """A panel for each measure of `grouping_rows`, the first condition with its intervals.

    Controls are dashed and grey.

    A line is broken where the token grid changes: across it numbers do not compare.
    """
    conditions = list(dict.fromkeys(str(row["condition"]) for row in rows))
    figure = new_figure(11.5, 5.6)
    panels = figure.subplots(2, 4)
    for axes, (measure, name) in zip(panels.flat, _TITLES.items(), strict=False):
        own = [row for row in rows if row["measure"] == measure]
        for number, condition in enumerate(conditions):
            _curve(axes, [row for row in own if row["condition"] == condition], number)
        if not own:
            axes.text(0.5, 0.5, "no image has a value", ha="center", transform=axes.transAxes)
        axes.set_title(name)
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        faint_grid(axes)
    legend = panels.flat[-1]
    legend.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center left", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _curve(axes: Axes, rows: Sequence[Row], number: int) -> None:
    control = bool(rows) and bool(rows[0]["control"])
    colour = NEUTRAL if number == 0 else OTHER_COLOURS[(number - 1) % len(OTHER_COLOURS)]
    colour = ("#999999", "#B8B8B8")[number % 2] if control else colour
    label = str(rows[0]["condition"]) if rows else None
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        blocks = [float(str(row["block"])) for row in own]
        middle, low, high = ([float(str(row[key])) for row in own] for key in
                             ("mean", "ci_low", "ci_high"))  # fmt: skip
        axes.plot(
            blocks,
            middle,
            color=colour,
            linestyle="--" if control else "-",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=3.5,
            linewidth=2.0 if number == 0 else 1.2,
            label=label,
            zorder=3 if number == 0 else 2,
        )
        label = None
        if number == 0:
            axes.fill_between(blocks, low, high, color=colour, alpha=0.18, linewidth=0)
