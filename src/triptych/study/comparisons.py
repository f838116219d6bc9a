"""Paired comparisons between the cells of a study, and how they are said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from triptych.study import statistics
from triptych.study.cells import Cell, all_metrics, headline_metric
from triptych.study.statistics import PairedDifference, paired_difference
from triptych.study.wording import (
    axis_rank,
    format_change,
    format_p,
    format_range,
    measured_once,
    metric_name,
    value_name,
)

# Axes whose tests are corrected together.
QUESTIONS = (("norm", "pretrain"), ("backbone",))


@dataclass(frozen=True)
class Comparison:
    """One paired comparison: ``first − second`` along one axis, all other labels equal."""

    axis: str
    first: Cell
    second: Cell
    metric: str
    unit: str
    result: PairedDifference
    p_holm: float
    family: int  # tests that p_holm is adjusted for

    @property
    def values(self) -> tuple[str, str]:
        """The two values of the compared label."""
        return getattr(self.first, self.axis), getattr(self.second, self.axis)

    @property
    def name(self) -> str:
        return f"{self.values[0]} - {self.values[1]}"


def compare_cells(cells: Sequence[Cell]) -> list[Comparison]:
    """Every paired comparison along norm, pre-training and backbone, with Holm's correction.

    A family is all tests of one metric along norm and pre-training, which is what studies ask
    about; those along the backbone, another question, are a family of their own. The second of a
    pair is the one that comes first in the order of baselines, so a difference reads "method
    minus baseline".
    """
    return [
        comparison
        for metric in all_metrics(cells)
        for axes in QUESTIONS
        for comparison in _metric_comparisons(metric, cells, axes)
    ]


def headline_comparisons(cells: Sequence[Cell]) -> list[Comparison]:
    """The comparisons of the metric that each table leads with, in the order of the tables."""
    return [
        item
        for item in compare_cells(cells)
        if item.metric == headline_metric([item.first, item.second])
    ]


def _metric_comparisons(
    metric: str, cells: Sequence[Cell], axes: Sequence[str]
) -> list[Comparison]:
    pairs = [
        (axis, first, second, _difference(metric, first, second))
        for axis, first, second in _pairs(cells, axes)
        if first.values(metric) and second.values(metric)
    ]
    adjusted = statistics.holm([result.p_value for *_, result in pairs])
    family = int((~pd.isna(adjusted)).sum())
    return [
        Comparison(
            axis, first, second, metric, _unit(metric, first, second), result, float(p), family
        )
        for (axis, first, second, result), p in zip(pairs, adjusted, strict=True)
    ]


def _difference(metric: str, first: Cell, second: Cell) -> PairedDifference:
    result = paired_difference(first.values(metric), second.values(metric))
    return statistics.without_replication(result) if measured_once(metric) else result


def _unit(metric: str, first: Cell, second: Cell) -> str:
    units = first.unit(metric), second.unit(metric)
    if units[0] != units[1]:
        raise ValueError(f"{metric} is recorded in different units: {units[0]}, {units[1]}")
    return units[0]


def _pairs(cells: Sequence[Cell], axes: Sequence[str]) -> Iterator[tuple[str, Cell, Cell]]:
    for axis in axes:
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            rest = tuple(value for label, value in cell.labels.items() if label != axis)
            groups.setdefault(rest, []).append(cell)
        for group in groups.values():
            ordered = sorted(group, key=lambda cell: axis_rank(axis, getattr(cell, axis)))
            for second, first in combinations(ordered, 2):
                yield axis, first, second


def comparison_label(item: Comparison) -> str:
    """``DTN − LN · GreenMIM``: the pair, then the labels that both share."""
    pair = " − ".join(value_name(value) for value in item.values)
    shared = [
        value_name(item.first.labels[label]) for label in ("norm", "pretrain") if label != item.axis
    ]
    if item.axis == "backbone":
        shared += [item.first.data, item.first.task]
    return " · ".join([pair, *shared])


def difference_sentence(item: Comparison) -> str:
    """The comparison in words, with its interval, seeds, correction and verdict."""
    result = item.result
    start = f"{comparison_label(item)}: {metric_name(item.metric)}"
    left_out = _left_out(result.left_out)
    if math.isnan(result.difference):
        return f"{start}: {result.verdict}{left_out}."
    change = format_change(result.difference, item.unit)
    if math.isnan(result.ci_low):
        return f"{start} {change}; {result.verdict}{left_out}."
    ends = format_range(result.ci_low, result.ci_high, item.unit)
    text = (
        f"{start} {change} (95 % interval {ends}, {result.n_seeds} seeds, "
        f"Holm p {format_p(item.p_holm)}): {result.verdict}"
    )
    if result.verdict != statistics.NO_DIFFERENCE and item.p_holm >= 0.05:
        text += f", but not after correction for {item.family} comparisons"
    return f"{text}{left_out}."


def _left_out(seeds: Sequence[int]) -> str:
    if not seeds:
        return ""
    noun = "seed" if len(seeds) == 1 else "seeds"
    return f" ({noun} {', '.join(map(str, seeds))} left out: only one of the two has it)"
