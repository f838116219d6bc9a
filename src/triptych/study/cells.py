"""Run records of one study, grouped into cells: all that is equal but the seed.

A record is the JSON object that a run writes. A cell's seeds may only be averaged when the rest of
the resolved configuration is the same, which is checked here, once, for tables, plots and report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from triptych.records import SCHEMA
from triptych.study.wording import LABELS, LEADING, axis_rank
from triptych.tasks.metric_log import DTN_SECTION

Record = Mapping[str, Any]
Setting = tuple[str, str, str]

STATUSES = ("done", "running", "failed", "preempted")
# What two runs of one cell may differ in: the seed, and what cannot change a result.
IGNORED_KEYS = (
    *("seed", "output_dir", "logger."),
    *("data.workers", "data.download"),
    "trainer.checkpoint_every",
)
CURVE_COLUMNS = ("cell", "stage", "name", "epoch", "step", "value")


@dataclass(frozen=True)
class Cell:
    """The done runs that differ in nothing but the seed."""

    backbone: str
    norm: str
    pretrain: str
    task: str
    data: str
    records_by_seed: Mapping[int, Record]

    @property
    def labels(self) -> dict[str, str]:
        return {label: getattr(self, label) for label in LABELS}

    @property
    def setting(self) -> Setting:
        """(backbone, data, task): what has to be equal for cells to stand in one table."""
        return self.backbone, self.data, self.task

    @property
    def metrics(self) -> list[str]:
        """Every metric that one of the seeds has, in the order of the records."""
        names: dict[str, None] = {}
        for record in self.records_by_seed.values():
            names.update(dict.fromkeys(record["metrics"]))
        return list(names)

    def values(self, metric: str) -> dict[int, float]:
        """Value of the metric for each seed that has it; null in the record is NaN."""
        return {
            seed: _as_float(record["metrics"][metric]["value"])
            for seed, record in sorted(self.records_by_seed.items())
            if metric in record["metrics"]
        }

    def unit(self, metric: str) -> str:
        """The unit of the metric; raises ValueError where the seeds disagree."""
        units = {
            record["metrics"][metric]["unit"]
            for record in self.records_by_seed.values()
            if metric in record["metrics"]
        }
        if len(units) > 1:
            raise ValueError(
                f"{metric} of {' / '.join(self.labels.values())} is recorded in different units: "
                f"{', '.join(sorted(units))}"
            )
        return next(iter(units))


def _as_float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def check_records(records: Sequence[Record]) -> None:
    """Refuse what is no record of one study, with one sentence each."""
    if not records:
        raise ValueError("there is no run record to report on")
    for record in records:
        name = record.get("cell", "without a cell name")
        if record.get("schema") != SCHEMA:
            raise ValueError(
                f"run record {name} has schema {record.get('schema')!r}; this one reads {SCHEMA}"
            )
        missing = [key for key in ("cell", "study", "status", "labels") if key not in record]
        missing += [
            f"labels.{label}"
            for label in (*LABELS, "seed")
            if label not in record.get("labels", {})
        ]
        if record.get("status") == "done":
            missing += [key for key in ("metrics", "config") if key not in record]
        if missing:
            raise ValueError(f"run record {name} lacks {', '.join(missing)}")
        if record["status"] not in STATUSES:
            raise ValueError(
                f"run record {name} has status {record['status']!r}; legal: {', '.join(STATUSES)}"
            )
    studies = sorted({record["study"] for record in records})
    if len(studies) > 1:
        raise ValueError(f"records of more than one study were given: {', '.join(studies)}")


def group_cells(records: Sequence[Record]) -> list[Cell]:
    """Group the done records by their labels, baselines first.

    Records that share labels but differ in the rest of their configuration are cells of their
    own; the differing keys stand in the label they belong to, ``classification(epochs=3)``.
    Raises ValueError where two records of a cell have the same seed.
    """
    check_records(records)
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record["status"] == "done":
            key = tuple(str(record["labels"][label]) for label in LABELS)
            groups.setdefault(key, []).append(record)
    cells = {
        variant: part
        for key, group in groups.items()
        for variant, part in _variants(key, group).items()
    }
    return [_cell(key, group) for key, group in sorted(cells.items(), key=_order)]


def _variants(key: tuple[str, ...], group: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Split records of equal labels by the configuration keys in which they differ."""
    differing = differing_keys(group)
    if len({record["labels"]["seed"] for record in group}) == len(group):
        differing.pop("task.run", None)  # each seed looks at a run of its own
    variants: dict[tuple[str, ...], list[Record]] = {}
    for record in group:
        flat = flatten(record["config"])
        changes: dict[str, list[str]] = {}
        for path in differing:
            part, _, name = path.rpartition(".")
            owner = part if part in LABELS else "task"
            changes.setdefault(owner, []).append(f"{name}={flat.get(path, 'absent')}")
        labels = [
            f"{value}({','.join(changes[label])})" if label in changes else value
            for label, value in zip(LABELS, key, strict=True)
        ]
        variants.setdefault(tuple(labels), []).append(record)
    return variants


def _order(item: tuple[tuple[str, ...], Any]) -> tuple[tuple[int, str], ...]:
    by_label = dict(zip(LABELS, item[0], strict=True))
    return tuple(
        axis_rank(label, by_label[label])
        for label in ("backbone", "data", "task", "norm", "pretrain")
    )


def _cell(key: tuple[str, ...], group: Sequence[Record]) -> Cell:
    name = " / ".join(key)
    by_seed: dict[int, Record] = {}
    for record in group:
        seed = int(record["labels"]["seed"])
        if seed in by_seed:
            raise ValueError(
                f"runs {by_seed[seed]['cell']} and {record['cell']} are both seed {seed} of {name}"
            )
        by_seed[seed] = record
    return Cell(
        **dict(zip(LABELS, key, strict=True)), records_by_seed=dict(sorted(by_seed.items()))
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration → {"trainer.lr": "0.001"}; lists are leaves."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = json.dumps(value, sort_keys=True)
    return flat


def differing_keys(records: Sequence[Record]) -> dict[str, list[str]]:
    """Key path → its values, where records differ in more than IGNORED_KEYS."""
    flats = [flatten(record["config"]) for record in records]
    paths = dict.fromkeys(path for flat in flats for path in flat if not _ignored(path))
    values = {
        path: list(dict.fromkeys(flat.get(path, "(absent)") for flat in flats)) for path in paths
    }
    return {path: seen for path, seen in values.items() if len(seen) > 1}


def _ignored(path: str) -> bool:
    return any(path == key or (key[-1] == "." and path.startswith(key)) for key in IGNORED_KEYS)


def by_setting(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Cells that can stand in one table: same backbone, data and task."""
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.setting, []).append(cell)
    return groups


def all_metrics(cells: Sequence[Cell]) -> list[str]:
    """Metrics of all cells, each once, in the order of the records."""
    return list(dict.fromkeys(metric for cell in cells for metric in cell.metrics))


def headline_metric(cells: Sequence[Cell]) -> str:
    """The metric a table leads with: one of LEADING, else the first test/ metric, else the first.

    Raises ValueError when no cell has a metric.
    """
    metrics = all_metrics(cells)
    if not metrics:
        raise ValueError("no done run has a metric")
    tests = [metric for metric in metrics if metric.startswith("test/")]
    return next((name for name in LEADING if name in metrics), (tests or metrics)[0])


def total_seconds(cell: Cell) -> dict[int, float]:
    """Pre-training and task training together, in seconds, for the seeds that recorded them.

    ``time/total`` where it is recorded, else ``time/pretrain`` + ``time/task``; a cell without
    pre-training needs none. A seed that lacks a part is left out.
    """
    recorded = cell.values("time/total")
    if recorded:
        return recorded
    task, pretrain = cell.values("time/task"), cell.values("time/pretrain")
    if cell.pretrain == "none":
        return {seed: seconds + pretrain.get(seed, 0.0) for seed, seconds in task.items()}
    return {seed: task[seed] + pretrain[seed] for seed in sorted(task.keys() & pretrain.keys())}


def run_folder(folder: Path, record: Record) -> Path:
    return folder / "runs" / record["cell"]


def read_curves(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics.jsonl; after a resume the later line of a step replaces the earlier.

    A last line without its newline is still being written and is left out. Raises ValueError for
    any other line that is no metric.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            latest[row["stage"], row["name"], row["step"]] = {
                "stage": str(row["stage"]),
                "name": str(row["name"]),
                "epoch": int(row["epoch"]),
                "step": int(row["step"]),
                "value": _as_float(row["value"]),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a metric line ({error!r})") from error
    yield from latest.values()


def curves_table(records: Sequence[Record], folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Curves of all done runs as one table (CURVE_COLUMNS), and what could not be read."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for record in records:
        if record["status"] != "done":
            continue
        if not record.get("curves"):
            problems.append(f"Run {record['cell']} records no curves.")
            continue
        path = run_folder(folder, record) / record["curves"]
        try:
            # Those from inside DTN are hundreds; each run's picture dtn_mixing holds them together.
            rows += [
                {"cell": record["cell"], **row}
                for row in read_curves(path)
                if not row["name"].startswith(f"{DTN_SECTION}/")
            ]
        except FileNotFoundError:
            problems.append(f"Curves missing: {path.relative_to(folder)}.")
        except ValueError as error:
            problems.append(f"Curves unreadable: {error}.")
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS)), problems
