"""The findings of the runs of a study, with intervals over seeds (arXiv 2210.07646)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from triptych.study import markup
from triptych.study.cells import Cell, Record, group_cells, run_folder
from triptych.study.plots import cell_name
from triptych.study.statistics import mean_interval
from triptych.study.wording import LABELS

PICTURE = "findings"
COLUMNS = (
    *("finding", "statement", "check", "quantity", "wanted", "reference"),
    *LABELS,
    *("mean", "ci_low", "ci_high", "n_seeds", "untrained"),
    *("holds", "also_untrained", "fails", "unanswered"),
)
_WHAT = ["finding", "statement", "check", "quantity", "wanted", "reference"]


def findings_table(records: Sequence[Record], folder: Path) -> pd.DataFrame:
    """Mean over seeds and 95 % interval of every check of every cell (COLUMNS).

    ``untrained``: mean over seeds of the same number of the same networks at their initial
    weights. ``holds``, ``also_untrained``, ``fails`` and ``unanswered`` count the seeds in which
    the statement holds, holds of the untrained network too, does not hold, and cannot be asked.
    Empty where no run has findings.
    """
    rows: list[dict[str, object]] = []
    for cell in group_cells(records):
        found = _of_cell(cell, folder)
        if found.empty:
            continue
        for what, own in found.groupby(_WHAT, sort=False, dropna=False):
            rows.append(dict(zip(_WHAT, what, strict=True)) | cell.labels | _over_seeds(own))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_cell(cell: Cell, folder: Path) -> pd.DataFrame:
    """The findings of all seeds of a cell, one under the other."""
    parts = []
    for seed, record in cell.records_by_seed.items():
        for picture in record.get("pictures") or ():
            path = run_folder(folder, record) / str(picture.get("numbers"))
            if picture["name"] == PICTURE and path.is_file():
                numbers = ("value", "ci_low", "ci_high", "untrained")
                empty = {key: [""] for key in numbers}
                part = pd.read_csv(path, keep_default_na=False, na_values=empty)
                if "untrained" not in part:  # made before there was a control
                    part["untrained"] = math.nan
                kinds = {"value": float, "untrained": float}
                parts.append(part.astype(kinds).assign(seed=seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _over_seeds(own: pd.DataFrame) -> dict[str, object]:
    values = [float(value) for value in own["value"] if math.isfinite(value)]
    counts = own["verdict"].value_counts()
    held: dict[str, object] = {
        "untrained": _mean(own["untrained"]),
        "holds": int(counts.get("holds", 0)),
        "also_untrained": int(counts.get("holds also untrained", 0)),
        "fails": int(counts.get("does not hold", 0)),
        "unanswered": int(counts.get("cannot be asked", 0)),
    }
    if not values:
        return {"mean": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n_seeds": 0} | held
    found = mean_interval(values)
    ends: dict[str, object] = {
        "mean": found.mean,
        "ci_low": found.low,
        "ci_high": found.high,
        "n_seeds": found.n,
    }
    return ends | held


def _mean(values: pd.Series) -> float:
    """Of the finite ones."""
    kept = [float(value) for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan


def findings_html(records: Sequence[Record], folder: Path, cells: Sequence[Cell]) -> str:
    """The table with a column for each cell: verdicts by seeds, then each number.

    A number is the mean over seeds ± half its 95 % interval, and that of the untrained networks.
    """
    table = findings_table(records, folder)
    header = ["", "statement and its numbers", "wanted", *map(cell_name, cells), "paper"]
    rows: list[list[str]] = []
    for (number, statement), block in table.groupby(["finding", "statement"], sort=False):
        held = [_held(_own(block, cell)) for cell in cells]
        rows.append([str(number), str(statement), "", *held, ""])
        checks = block[block["check"] != ""]
        for (_, quantity), lines in checks.groupby(["check", "quantity"], sort=False):
            first = lines.iloc[0]
            numbers = [_number(_own(lines, cell)) for cell in cells]
            rows.append(["", str(quantity), first["wanted"], *numbers, first["reference"]])
    return markup.table(header, rows, numbers=range(3, 3 + len(cells)))


def _own(block: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    own = block
    for label, value in cell.labels.items():
        own = own[own[label] == value]
    return own


def _held(own: pd.DataFrame) -> str:
    """``holds in 2 of 3``, and in how many untrained too; or that it cannot be asked."""
    if own.empty:
        return "–"
    first: Mapping[str, int] = own.iloc[0]
    holds = first["holds"] + first["also_untrained"]
    asked = holds + first["fails"]
    if not asked:
        return "cannot be asked"
    text = f"holds in {holds} of {asked}"
    return f"{text}, untrained in {first['also_untrained']}" if first["also_untrained"] else text


def _number(own: pd.DataFrame) -> str:
    if own.empty or not math.isfinite(own.iloc[0]["mean"]):
        return "–"
    line = own.iloc[0]
    half = (line["ci_high"] - line["ci_low"]) / 2
    text = f"{line['mean']:.3g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")
    beside = line["untrained"]
    return f"{text} (untrained {beside:.3g})" if math.isfinite(beside) else text
