"""Errors under corruptions, with intervals over seeds, and relative to LN of the same study.

AlexNet's errors, by which the mCE of ImageNet-C is scaled, mean nothing on other images. There a
norm is scaled by LN instead: error / error of the LN cell that is equal but for the norm, seed by
seed; over all corruptions the mean of these ratios, as the mCE is the mean over AlexNet's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from triptych.study import markup
from triptych.study.cells import Cell, Record, group_cells
from triptych.study.plots import cell_name
from triptych.study.statistics import Interval, mean_interval
from triptych.study.wording import LABELS, format_mean

PREFIX = "corruption/error/"
MEAN = "corruption/mean_error"
BASELINE = "ln"
ALL = "mean of all"
COLUMNS = (
    *LABELS,
    *("corruption", "error", "ci_low", "ci_high", "n_seeds"),
    *("relative_to_ln", "relative_ci_low", "relative_ci_high", "relative_n_seeds"),
)


def corruption_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each cell and corruption, and one for all corruptions of a cell (COLUMNS).

    What is relative to LN is empty where the study has no LN cell beside it, and for that itself 1.
    The row of all is there only where every corruption that was asked is whole.
    """
    cells = group_cells(records)
    rows: list[dict[str, object]] = []
    for cell in cells:
        base = _baseline(cell, cells)
        for name, metric in _metrics(cell).items():
            ratios = _ratios(cell, base, metric) if base is not None else {}
            rows.append(
                {**cell.labels, "corruption": name}
                | _ends(cell.values(metric), ("error", "ci_low", "ci_high", "n_seeds"))
                | _ends(ratios, COLUMNS[-4:])
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _metrics(cell: Cell) -> dict[str, str]:
    """Name of a corruption → its metric, and last the mean of all."""
    own = {
        metric.removeprefix(PREFIX): metric for metric in cell.metrics if metric.startswith(PREFIX)
    }
    return own | ({ALL: MEAN} if MEAN in cell.metrics else {})


def _baseline(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell with LN that is equal to ``cell`` in all other labels."""
    wanted = {**cell.labels, "norm": BASELINE}
    return next((other for other in cells if other.labels == wanted), None)


def _ratios(cell: Cell, base: Cell, metric: str) -> dict[int, float]:
    """Error over LN's for each seed that both have; of all corruptions the mean of the ratios."""
    names = [metric]
    if metric == MEAN:
        names = [name for name in cell.metrics if name.startswith(PREFIX)]
    each = []
    for name in names:
        own, theirs = cell.values(name), base.values(name)
        each.append({seed: _ratio(own[seed], theirs[seed]) for seed in own.keys() & theirs.keys()})
    shared = set.intersection(*(set(ratios) for ratios in each))
    return {seed: fmean(ratios[seed] for ratios in each) for seed in sorted(shared)}


def _ratio(own: float, base: float) -> float:
    return own / base if base > 0 else math.nan


def _ends(values: Mapping[int, float], names: Sequence[str]) -> dict[str, object]:
    if not values:
        return dict(zip(names, (math.nan, math.nan, math.nan, 0), strict=True))
    found = mean_interval(list(values.values()))
    return dict(zip(names, (found.mean, found.low, found.high, found.n), strict=True))


def corruption_html(records: Sequence[Record], cells: Sequence[Cell]) -> str:
    """Errors of ``cells``, a column each and a line a corruption; then the mean relative to LN."""
    table = corruption_table(records)
    lines = list(dict.fromkeys(name for cell in cells for name in _metrics(cell)))
    header = ["error under", *map(cell_name, cells)]
    rows = [
        [name.replace("_", " "), *(_text(_own(table, cell, name), "error") for cell in cells)]
        for name in lines
    ]
    relative = [_text(_own(table, cell, ALL), "relative") for cell in cells]
    rows.append(["relative to LN, mean of all", *relative])
    remarks = dict.fromkeys(
        f"{record['cell']}: {remark}"
        for cell in cells
        for record in cell.records_by_seed.values()
        for remark in record.get("remarks", ())
    )
    listed = markup.bullet_list(list(remarks)) if remarks else ""
    return markup.table(header, rows, numbers=range(1, len(header))) + listed


def _own(table: pd.DataFrame, cell: Cell, name: str) -> pd.DataFrame:
    own = table[table["corruption"] == name]
    for label, value in cell.labels.items():
        own = own[own[label] == value]
    return own


def _text(own: pd.DataFrame, what: str) -> str:
    """``34.1 ± 1.2 %``, or – where it was not asked."""
    column, start = ("error", "ci") if what == "error" else ("relative_to_ln", "relative_ci")
    if own.empty or math.isnan(own.iloc[0][column]):
        return "–"
    line = own.iloc[0]
    ends = Interval(line[column], line[f"{start}_low"], line[f"{start}_high"], 0)
    return format_mean(ends.mean, ends.half_width, "fraction")
