"""What examinations of a classifier found: errors by corruption, accuracy by image size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from triptych.palette import OTHER_COLOURS
from triptych.visualization.style import ERROR_MAP, NEUTRAL, faint_grid, new_figure, styled

Row = Mapping[str, object]


@styled
def corruption_figure(rows: Sequence[Row], *, clean: float, title: str = "") -> Figure:
    """Errors in per cent: a line for each corruption, a column for each severity.

    Args:
        rows: with corruption, severity and error (a share); sets that were not asked stay empty.
        clean: error on clean images, for the heading.
    """
    names = list(dict.fromkeys(str(row["corruption"]) for row in rows))
    severities = sorted({int(str(row["severity"])) for row in rows})
    errors = np.full((len(names), len(severities)), np.nan)
    for row in rows:
        place = names.index(str(row["corruption"])), severities.index(int(str(row["severity"])))
        errors[place] = 100 * float(str(row["error"]))
    figure = new_figure(1.9 + 0.62 * len(severities), 1.0 + 0.26 * len(names))
    axes = figure.subplots()
    shown = axes.imshow(errors, cmap=ERROR_MAP, vmin=0, vmax=100, aspect="auto")
    for (line, column), error in np.ndenumerate(errors):
        if np.isfinite(error):
            colour = "black" if error > 60 else "white"
            axes.text(column, line, f"{error:.0f}", ha="center", va="center", color=colour)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axes.set_xlabel("severity")
    figure.colorbar(shown, ax=axes, label="error, %")
    axes.set_title(f"{title}clean images: {100 * clean:.1f} %")
    return figure


@styled
def resolution_figure(rows: Sequence[Row], *, trained: int, chance: float) -> Figure:
    """Accuracy against image size; ``trained`` is marked, ``chance`` drawn dashed."""
    sizes = [int(str(row["size"])) for row in rows]
    figure = new_figure(4.2, 3.0)
    axes = figure.subplots()
    accuracies = [float(str(row["accuracy"])) for row in rows]
    axes.plot(sizes, accuracies, "o-", color=OTHER_COLOURS[0], markersize=4)
    axes.axvline(trained, color=NEUTRAL, linewidth=0.8, linestyle=":")
    axes.axhline(chance, color=NEUTRAL, linewidth=0.8, linestyle="--")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel(f"image size, pixels (trained at {trained})")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.02)
    faint_grid(axes)
    return figure
