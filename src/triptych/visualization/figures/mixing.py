"""DTN's mixing ratios over training, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from triptych.visualization.style import (
    NEUTRAL,
    faint_grid,
    head_colours,
    new_figure,
    short_path,
    styled,
)

Row = Mapping[str, object]
QUANTITIES = {"lambda_mean": "mean", "lambda_variance": "variance"}
_STAGES = ("pretrain", "task")
_STAGE_NAMES = {"pretrain": "pre-training", "task": "task"}
_LISTED_HEADS = 12
# The least range that is drawn, so that noise of a thousandth does not look like a trend.
_LEAST_SPAN = 0.02


@styled
def mixing_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """λ of mean and variance over epochs: two panels for each layer, a line for each head.

    All panels share both scales. The ratio is 1 where a head takes the token's own statistics
    alone, and 0 where it takes its neighbourhood's; a dashed line stands at 0.5. Epochs of the
    task follow those of pre-training, behind a dotted line.

    Args:
        rows: one for each stage, number of epochs, layer and head, with the keys stage
            ("pretrain" or "task"), epochs, layer, head, lambda_mean and lambda_variance.
        title: above the whole figure.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no ratios to draw; give at least one row")
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(str(row["layer"]), []).append(row)
    starts = _stage_starts(rows)
    side = 2 if len(by_layer) <= 24 else 4  # even: the two norms of a block share a line
    lines = -(-len(by_layer) // side)
    figure = new_figure(4.4 * side + 1.1, 1.42 * lines + 0.9)
    grid = figure.subplots(lines, 2 * side, squeeze=False, sharex=True, sharey=True)
    pairs = grid.reshape(lines * side, 2)
    for pair, (layer, own) in zip(pairs, by_layer.items(), strict=False):
        for axes, (key, word) in zip(pair, QUANTITIES.items(), strict=True):
            _ratio_panel(axes, own, key, starts)
            axes.set_title(f"{short_path(layer)}: {word}", fontsize=8)
    for axes in pairs[len(by_layer) :].ravel():
        axes.remove()
    grid[0, 0].set_ylim(*_limits(rows))
    for row_of_axes in grid:
        row_of_axes[0].set_ylabel("λ")
    for below in pairs[max(0, len(by_layer) - side) : len(by_layer)].ravel():
        below.set_xlabel("epoch")
        below.tick_params(labelbottom=True)
    _keys(figure, grid.ravel().tolist(), by_layer, starts)
    if title:
        figure.suptitle(title)
    return figure


def _stage_starts(rows: Sequence[Row]) -> dict[str, int]:
    """Epochs trained before each stage that has rows."""
    starts, before = {}, 0
    for stage in _STAGES:
        epochs = [int(str(row["epochs"])) for row in rows if row["stage"] == stage]
        if epochs:
            starts[stage] = before
            before += max(epochs)
    return starts


def _ratio_panel(axes: Axes, rows: Sequence[Row], key: str, starts: Mapping[str, int]) -> None:
    heads = sorted({int(str(row["head"])) for row in rows})
    for head, colour in zip(heads, head_colours(len(heads)), strict=True):
        for stage, start in starts.items():
            points = sorted(
                (int(str(row["epochs"])), float(str(row[key])))
                for row in rows
                if row["stage"] == stage and row["head"] == head
            )
            at = [start + epochs for epochs, _ in points]
            axes.plot(
                at,
                [value for _, value in points],
                marker="o" if len(points) < 8 else "",
                markersize=2.5,
                linewidth=1.3,
                color=colour,
            )
    axes.axhline(0.5, color=NEUTRAL, linestyle="--", linewidth=0.7, zorder=1)
    for start in starts.values():
        if start:
            axes.axvline(start, color=NEUTRAL, linestyle=":", linewidth=1.0, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    faint_grid(axes)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """From the least to the greatest ratio, 0.5 included, with some room."""
    values = [float(str(row[key])) for row in rows for key in QUANTITIES] + [0.5]
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (_LEAST_SPAN - (high - low)) / 2, 0.0)
    return low - room, high + room


def _keys(
    figure: Figure,
    panels: list[Axes],
    by_layer: Mapping[str, Sequence[Row]],
    starts: Mapping[str, int],
) -> None:
    """What the colours are: a list of heads, or a bar where layers differ in their number."""
    counts = {len({row["head"] for row in rows}) for rows in by_layer.values()}
    handles = [Line2D([], [], color=NEUTRAL, linestyle="--", linewidth=0.7, label="λ = 0.5")]
    if len(starts) > 1:
        label = f"{_STAGE_NAMES['pretrain']} ends"
        handles.append(Line2D([], [], color=NEUTRAL, linestyle=":", linewidth=1.0, label=label))
    heads = max(counts)
    if len(counts) == 1 and heads <= _LISTED_HEADS:
        handles += [
            Line2D([], [], color=colour, label=f"head {head}")
            for head, colour in enumerate(head_colours(heads))
        ]
    else:
        shown = ScalarMappable(cmap=ListedColormap(head_colours(heads)))
        drawn = [axes for axes in panels if axes.figure is not None]
        tall = min(1.0, 3.0 / figure.get_figheight())
        bar = figure.colorbar(shown, ax=drawn, fraction=0.03, shrink=tall, ticks=[0.0, 1.0])
        bar.ax.set_yticklabels(["first\nhead", "last\nhead"])
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 8),
        frameon=False,
    )
