"""The tables of a study: means, paired differences, and the comparison for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from triptych.study.cells import (
    Cell,
    Record,
    Setting,
    by_setting,
    group_cells,
    headline_metric,
    total_seconds,
)
from triptych.study.comparisons import compare_cells, difference_sentence, headline_comparisons
from triptych.study.statistics import Interval, mean_interval
from triptych.study.wording import (
    LABELS,
    format_mean,
    measured_once,
    metric_name,
    setting_name,
    value_name,
)

SUMMARY_COLUMNS = (*LABELS, "metric", "unit", "mean", "ci_low", "ci_high", "n_seeds")
DIFFERENCE_COLUMNS = (
    *LABELS,
    "metric",
    "unit",
    "comparison",
    "first",
    "second",
    "difference",
    "ci_low",
    "ci_high",
    "n_seeds",
    "p_value",
    "p_holm",
    "verdict",
)
COST_METRICS = (
    "time/total",
    "cost/task/train_throughput",
    "cost/task/peak_memory",
)


def summary_table(records: Sequence[Record]) -> pd.DataFrame:
    """Mean and 95 % t-interval over seeds of every metric of every cell (SUMMARY_COLUMNS).

    ``ci_low`` and ``ci_high`` are empty for one seed, and for costs, which the seeds share.
    """
    rows = []
    for cell in group_cells(records):
        for metric in cell.metrics:
            interval = _over_seeds(metric, cell.values(metric))
            rows.append(
                {
                    **cell.labels,
                    "metric": metric,
                    "unit": cell.unit(metric),
                    "mean": interval.mean,
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                    "n_seeds": interval.n,
                }
            )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _over_seeds(metric: str, values: Mapping[int, float]) -> Interval:
    interval = mean_interval(list(values.values()))
    if measured_once(metric):
        return Interval(interval.mean, math.nan, math.nan, interval.n)
    return interval


def differences_table(records: Sequence[Record]) -> pd.DataFrame:
    """All paired comparisons of all metrics (DIFFERENCE_COLUMNS).

    ``comparison`` is "first - second"; the compared label's own column says the same, as it has
    no single value. ``p_holm`` is adjusted over all tests of the same
    metric along norm and pre-training, or else along the backbone.
    """
    rows = []
    for item in compare_cells(group_cells(records)):
        rows.append(
            {
                **item.first.labels,
                item.axis: item.name,
                "metric": item.metric,
                "unit": item.unit,
                "comparison": item.name,
                "first": item.values[0],
                "second": item.values[1],
                "difference": item.result.difference,
                "ci_low": item.result.ci_low,
                "ci_high": item.result.ci_high,
                "n_seeds": item.result.n_seeds,
                "p_value": item.result.p_value,
                "p_holm": item.p_holm,
                "verdict": item.result.verdict,
            }
        )
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def metric_interval(cell: Cell, metric: str) -> tuple[Interval, str] | None:
    """Interval and unit of a metric of a cell; None where no seed has it.

    ``time/total`` is made from its parts where it is not recorded.
    """
    values = total_seconds(cell) if metric == "time/total" else cell.values(metric)
    if not values:
        return None
    unit = "s" if metric == "time/total" else cell.unit(metric)
    return _over_seeds(metric, values), unit


def mean_text(cell: Cell, metric: str) -> str:
    """``95.3 ± 0.8 %``, or – where the cell has no such metric."""
    found = metric_interval(cell, metric)
    return "–" if found is None else format_mean(found[0].mean, found[0].half_width, found[1])


def comparison_text(records: Sequence[Record], *, width: int = 110, color: bool = False) -> str:
    """The comparison for a terminal: one table a setting, below it the differences in words."""
    cells = group_cells(records)
    unfinished = [record for record in records if record["status"] != "done"]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, no_color=not color)
    leading = headline_comparisons(cells)
    for setting, group in by_setting(cells).items():
        console.print(_terminal_table(setting, group, headline_metric(group)))
        for item in leading:
            if item.first.setting == item.second.setting == setting:
                console.print(f"  {difference_sentence(item)}", highlight=False)
        console.print()
    for item in leading:
        if item.axis == "backbone":
            console.print(f"  {difference_sentence(item)}", highlight=False)
    if unfinished:
        names = ", ".join(f"{record['cell']} ({record['status']})" for record in unfinished)
        console.print(f"Not done, left out above: {names}", highlight=False)
    return out.getvalue()


def _terminal_table(setting: Setting, cells: Sequence[Cell], metric: str) -> Table:
    table = Table(title=setting_name(setting), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("norm")
    table.add_column("pre-training")
    table.add_column(metric_name(metric), justify="right")
    table.add_column("seeds", justify="right")
    for cost in COST_METRICS:
        table.add_column(metric_name(cost), justify="right")
    for cell in cells:
        table.add_row(
            value_name(cell.norm),
            value_name(cell.pretrain),
            mean_text(cell, metric),
            str(len(cell.values(metric))),
            *(mean_text(cell, cost) for cost in COST_METRICS),
        )
    return table
