"""How predictions fare under dropped and shuffled cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from triptych.palette import OTHER_COLOURS
from triptych.visualization.style import NEUTRAL, faint_grid, new_figure, styled

Row = Mapping[str, object]
_NAMES = {
    "drop random": "of all cells",
    "drop salient": "of object cells",
    "drop non_salient": "of background cells",
}


@styled
def robustness_figure(rows: Sequence[Row], *, chance: float | None, title: str = "") -> Figure:
    """Left: cells dropped at rising shares. Right: cells shuffled on finer grids.

    Args:
        rows: of `robustness_rows`.
        chance: level of guessing, drawn dashed; None where there is none.
    """
    figure = new_figure(8.4, 3.2)
    dropped, shuffled = figure.subplots(1, 2, sharey=True)
    start = [row for row in rows if row["disturbance"] == "none"]
    for (kind, name), colour in zip(_NAMES.items(), OTHER_COLOURS, strict=False):
        own = [row for row in rows if row["disturbance"] == kind]
        if own:
            _line(dropped, [*start, *own], colour, name)
    own = [row for row in rows if row["disturbance"] == "shuffle"]
    _line(shuffled, [{**start[0], "amount": 1}, *own], NEUTRAL, "")
    dropped.set_xlabel("share of cells blackened")
    dropped.legend(frameon=False)
    shuffled.set_xscale("log", base=2)
    sides = [1, *(int(str(row["amount"])) for row in own)]
    shuffled.set_xticks(sides, [f"{side}x{side}" for side in sides])
    shuffled.xaxis.set_minor_formatter(NullFormatter())
    shuffled.set_xlabel("cells that are shuffled")
    dropped.set_ylabel(str(start[0]["number"]))
    for axes in (dropped, shuffled):
        axes.set_ylim(-0.02, 1.02)
        faint_grid(axes)
        if chance is not None:
            axes.axhline(chance, color=NEUTRAL, linestyle="--", linewidth=0.8)
    if title:
        figure.suptitle(title)
    return figure


def _line(axes: Axes, rows: Sequence[Row], colour: str, name: str) -> None:
    at, middle, low, high = ([float(str(row[key])) for row in rows] for key in
                             ("amount", "mean", "ci_low", "ci_high"))  # fmt: skip
    axes.plot(at, middle, "o-", color=colour, label=name, markersize=4)
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
