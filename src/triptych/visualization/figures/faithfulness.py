"""Deletion and insertion curves, with the area under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from triptych.palette import OTHER_COLOURS
from triptych.visualization.style import NEUTRAL, faint_grid, new_figure, styled

Row = Mapping[str, object]
_BETTER = {"deletion": "lower is better", "insertion": "higher is better"}


@styled
def faithfulness_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """Left deletion, right insertion; a line for each method, the last one grey and dashed."""
    figure = new_figure(8.8, 3.3)
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    for axes, (direction, better) in zip(figure.subplots(1, 2, sharey=True), _BETTER.items(),
                                         strict=True):  # fmt: skip
        for number, method in enumerate(methods):
            own = [r for r in rows if r["method"] == method and r["direction"] == direction]
            anchor = number == len(methods) - 1
            axes.plot(
                [float(str(row["share"])) for row in own],
                [float(str(row["probability"])) for row in own],
                color=NEUTRAL if anchor else OTHER_COLOURS[number],
                linestyle="--" if anchor else "-",
                label=f"{method}: area {float(str(own[0]['area'])):.2f}",
            )
        axes.set_title(f"{direction} ({better})")
        done = "deleted" if direction == "deletion" else "inserted"
        axes.set_xlabel(f"share of cells {done}")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False)
        faint_grid(axes)
        if direction == "deletion":
            axes.set_ylabel("probability of the class")
    if title:
        figure.suptitle(title)
    return figure
