"""Figures of a study: accuracy against cost, learning curves, differences with intervals.

Colour says the norm; marker and line style say the pre-training. Figures are made without pyplot,
so nothing is left open and no backend is chosen for the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from triptych.palette import NORM_COLOURS, OTHER_COLOURS
from triptych.study import statistics
from triptych.study.cells import Cell, Setting, by_setting
from triptych.study.comparisons import Comparison, comparison_label
from triptych.study.statistics import Interval
from triptych.study.tables import metric_interval
from triptych.study.wording import metric_name, setting_name, value_name

MARKERS = {"none": "o", "standard": "s", "greenmim": "^"}
LINE_STYLES: dict[str, LineStyleType] = {"none": ":", "standard": "--", "greenmim": "-"}
OTHER_LINE_STYLE: LineStyleType = "-."
OTHER_MARKER = "D"
INK = "#33373D"
MUTED = "#9AA0A8"
WIDTH_INCHES = 7.2
CURVE_WIDTH_INCHES = 5.8
# Names of rows: what has room in that width, and what each further letter takes.
ROOM_FOR_LETTERS = 30
INCHES_A_LETTER = 0.075
# Panels of a figure with several settings.
COLUMNS = 3
PANEL = 3.4


def norm_colors(cells: Sequence[Cell]) -> dict[str, str]:
    """A colour for every norm: the palette's own, then the others in alphabetical order."""
    others = sorted({cell.norm for cell in cells} - NORM_COLOURS.keys())
    return NORM_COLOURS | {
        norm: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, norm in enumerate(others)
    }


def cell_name(cell: Cell) -> str:
    """``DTN · GreenMIM``."""
    return f"{value_name(cell.norm)} · {value_name(cell.pretrain)}"


def _new_axes(height: float, width: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)


def _new_rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each name, as wide as leaves room for the names."""
    longest = max(map(len, names))
    width = CURVE_WIDTH_INCHES + INCHES_A_LETTER * max(0, longest - ROOM_FOR_LETTERS)
    figure, axes = _new_axes(0.9 + 0.32 * len(names), width)
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def _shown(values: np.ndarray | float, unit: str) -> np.ndarray:
    """Fractions are drawn in per cent, everything else as it is."""
    return np.asarray(values, dtype=np.float64) * (100 if unit == "fraction" else 1)


def _axis_label(metric: str, unit: str) -> str:
    shown = {"fraction": "%", "count": ""}.get(unit, unit)
    return f"{metric_name(metric)} ({shown})" if shown else metric_name(metric)


def _error(interval: Interval, unit: str) -> list[float] | None:
    half = float(_shown(interval.half_width, unit))
    return None if np.isnan(half) else [half]


def scatter(cells: Sequence[Cell], x: str, y: str) -> Figure:
    """One point a cell, ``y`` against ``x``, with 95 % intervals where there are two seeds.

    A panel for every setting (backbone, data, task). Raises ValueError when no cell has both
    metrics.
    """
    drawn = [cell for cell in cells if metric_interval(cell, x) and metric_interval(cell, y)]
    if not drawn:
        raise ValueError(f"no cell has both {x} and {y}")
    groups = by_setting(drawn)
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    size = (WIDTH_INCHES, 4.0) if len(groups) == 1 else (PANEL * columns, PANEL * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (setting, group) in zip(panels, groups.items(), strict=False):
        _dress(axes)
        _scatter_on(axes, group, (x, y), norm_colors(cells))
        if len(groups) > 1:
            axes.set_title(_where(setting, groups), fontsize=9, color=INK)
    for axes in panels:  # those left over
        axes.set_visible(False)
    _legend(figure, drawn, lines=False)
    return figure


def _scatter_on(
    axes: Axes, cells: Sequence[Cell], metrics: tuple[str, str], colors: Mapping[str, str]
) -> None:
    for cell in cells:
        at_x, at_y = (metric_interval(cell, metric) for metric in metrics)
        assert at_x is not None
        assert at_y is not None
        axes.errorbar(
            [float(_shown(at_x[0].mean, at_x[1]))],
            [float(_shown(at_y[0].mean, at_y[1]))],
            xerr=_error(*at_x),
            yerr=_error(*at_y),
            fmt=MARKERS.get(cell.pretrain, OTHER_MARKER),
            color=colors[cell.norm],
            markersize=8,
            markeredgecolor="white",
            elinewidth=1.4,
        )
        axes.set_xlabel(_axis_label(metrics[0], at_x[1]), color=INK)
        axes.set_ylabel(_axis_label(metrics[1], at_y[1]), color=INK)
    axes.margins(0.12)


def _where(setting: Setting, among: Collection[Setting]) -> str:
    """The parts of ``setting`` in which those ``among`` which it stands differ."""
    differ = [len({other[part] for other in among}) > 1 for part in range(len(setting))]
    return setting_name(tuple(part for part, shown in zip(setting, differ, strict=True) if shown))


def learning_curves(cells: Sequence[Cell], curves: pd.DataFrame, stage: str, name: str) -> Figure:
    """Mean over seeds of one curve for every cell, with a band from the least to the greatest seed.

    ``curves`` has CURVE_COLUMNS. Values of one epoch are averaged; where all lie in one epoch the
    x-axis is the step. Raises ValueError when no cell has the curve.
    """
    figure, axes = _new_axes(3.3, CURVE_WIDTH_INCHES)
    colors = norm_colors(cells)
    chosen = curves[(curves["stage"] == stage) & (curves["name"] == name)]
    x = "epoch" if chosen["epoch"].nunique() > 1 else "step"
    drawn = []
    for cell in cells:
        runs = [record["cell"] for record in cell.records_by_seed.values()]
        table = chosen[chosen["cell"].isin(runs)].pivot_table(
            index=x, columns="cell", values="value", aggfunc="mean"
        )
        if table.empty:
            continue
        style = LINE_STYLES.get(cell.pretrain, OTHER_LINE_STYLE)
        at = table.index.to_numpy()
        axes.plot(at, table.mean(axis=1), linestyle=style, color=colors[cell.norm], linewidth=1.8)
        axes.fill_between(
            at, table.min(axis=1), table.max(axis=1), color=colors[cell.norm], alpha=0.13, lw=0
        )
        drawn.append(cell)
    if not drawn:
        raise ValueError(f"no cell has the curve {name} of stage {stage}")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(name.replace("/", " ").replace("_", " "), color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, drawn, lines=True)
    return figure


def _legend(figure: Figure, cells: Sequence[Cell], *, lines: bool) -> None:
    """Two keys in one row: colour for the norm, marker or line style for the pre-training."""
    colors = norm_colors(cells)
    norms = dict.fromkeys(cell.norm for cell in cells)
    pretrains = dict.fromkeys(cell.pretrain for cell in cells)
    handles = [
        Line2D([], [], color=colors[norm], linewidth=5, label=value_name(norm)) for norm in norms
    ]
    for pretrain in pretrains:
        style = LINE_STYLES.get(pretrain, OTHER_LINE_STYLE) if lines else ""
        marker = "" if lines else MARKERS.get(pretrain, OTHER_MARKER)
        handles.append(
            Line2D([], [], color=INK, linestyle=style, marker=marker, label=value_name(pretrain))
        )
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.4,
    )


def differences(comparisons: Sequence[Comparison]) -> Figure:
    """Dots with 95 % intervals around a line at 0; grey where no difference is detectable.

    A hollow dot has no interval (one seed). Raises ValueError when there is nothing to draw.
    """
    shown = [item for item in comparisons if np.isfinite(item.result.difference)]
    if not shown:
        raise ValueError("there is no finite difference to draw")
    figure, axes = _new_rows([_row_label(item, shown) for item in shown])
    unit = shown[0].unit
    for row, item in enumerate(shown):
        _difference_dot(axes, row, item)
    axes.axvline(0, color=INK, linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    label = "percentage points" if unit == "fraction" else unit
    axes.set_xlabel(f"difference in {metric_name(shown[0].metric)} ({label})", color=INK)
    return figure


def _difference_dot(axes: Axes, row: int, item: Comparison) -> None:
    result = item.result
    half = float(_shown(result.ci_high - result.ci_low, item.unit)) / 2
    detected = result.verdict in (statistics.HIGHER, statistics.LOWER)
    axes.errorbar(
        [float(_shown(result.difference, item.unit))],
        [row],
        xerr=None if np.isnan(half) else [half],
        fmt="o",
        color=INK if detected else MUTED,
        markerfacecolor="white" if np.isnan(half) else None,
        markersize=7,
        elinewidth=2,
    )


def _row_label(item: Comparison, shown: Sequence[Comparison]) -> str:
    """The pair, with its backbone, data and task where the figure holds more than one."""
    settings = {other.first.setting for other in shown if other.axis != "backbone"}
    alone = len(settings) < 2 or item.axis == "backbone"
    where = "" if alone else f" · {_where(item.first.setting, settings)}"
    return f"{comparison_label(item)}{where}"


def values(cells: Sequence[Cell], metric: str) -> Figure:
    """The metric of every cell as a dot with its 95 % interval.

    Raises ValueError when no cell has the metric.
    """
    found = [(cell, metric_interval(cell, metric)) for cell in cells]
    shown = [(cell, interval) for cell, interval in found if interval is not None]
    if not shown:
        raise ValueError(f"no cell has {metric}")
    settings = {cell.setting for cell, _ in shown}
    names = [
        f"{cell_name(cell)} · {_where(cell.setting, settings)}"
        if len(settings) > 1
        else cell_name(cell)
        for cell, _ in shown
    ]
    figure, axes = _new_rows(names)
    colors = norm_colors(cells)
    for row, (cell, (interval, unit)) in enumerate(shown):
        axes.errorbar(
            [float(_shown(interval.mean, unit))],
            [row],
            xerr=_error(interval, unit),
            fmt=MARKERS.get(cell.pretrain, OTHER_MARKER),
            color=colors[cell.norm],
            markersize=7,
            elinewidth=2,
        )
    axes.set_xlabel(_axis_label(metric, shown[0][1][1]), color=INK)
    return figure
