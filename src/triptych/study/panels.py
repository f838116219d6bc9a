"""A dashboard described once, as plain data.

The same description is drawn as ``report.html`` for people without an account and translated to a
W&B workspace for people with one. Panels name metrics, curves and pictures by the keys of the run
record; the keys under which a mirror logs them are :func:`curve_key` and :func:`picture_key`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from triptych.mirror import curve_key as curve_key
from triptych.study.cells import (
    Cell,
    Record,
    Setting,
    all_metrics,
    by_setting,
    curves_table,
    group_cells,
    headline_metric,
    total_seconds,
)
from triptych.study.wording import metric_name, setting_name

STAGES = ("pretrain", "task")


def step_key(stage: str) -> str:
    """The x-axis that a mirror logs with the curves of a stage: ``pretrain/step``."""
    return f"{stage}/step"


def picture_key(name: str) -> str:
    """Name of a picture in a mirror: ``pictures/rollout``."""
    return f"pictures/{name}"


@dataclass(frozen=True)
class LinePanel:
    """A curve over training: mean over seeds of each cell, with the range of the seeds."""

    title: str
    stage: str
    name: str
    setting: Setting


@dataclass(frozen=True)
class ScatterPanel:
    """One point a cell: metric ``y`` against metric ``x``, both with intervals."""

    title: str
    x: str
    y: str
    setting: Setting


@dataclass(frozen=True)
class BarPanel:
    """A metric of all cells (``values``), or their paired differences around 0."""

    title: str
    metric: str
    show: Literal["values", "differences"]


@dataclass(frozen=True)
class ImagePanel:
    """One picture of every cell, side by side, seed by seed."""

    title: str
    name: str
    setting: Setting


TableName = Literal[
    "comparison",
    "sentences",
    "differences",
    "findings",
    "corruptions",
    "cost",
    "settings",
    "failures",
    "runs",
]


@dataclass(frozen=True)
class TablePanel:
    """A table, or a list of sentences, made from the records; of one setting or of the study."""

    title: str
    table: TableName
    setting: Setting | None = None


Panel = LinePanel | ScatterPanel | BarPanel | ImagePanel | TablePanel


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]
    note: str = ""


@dataclass(frozen=True)
class Dashboard:
    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Study:
    """The records of one study, read and grouped; ``problems`` says what could not be read."""

    name: str
    title: str
    folder: Path
    records: tuple[Record, ...]
    cells: tuple[Cell, ...]
    curves: pd.DataFrame
    problems: tuple[str, ...]


def load_study(records: Sequence[Record], folder: Path, title: str | None = None) -> Study:
    """Group the records and read the curves that lie beside them under ``folder``/runs/<cell>.

    Raises ValueError for records that are not of one study or cannot be grouped.
    """
    cells = group_cells(records)
    curves, problems = curves_table(records, folder)
    name = records[0]["study"]
    return Study(name, title or name, folder, tuple(records), tuple(cells), curves, tuple(problems))


def default_dashboard(study: Study) -> Dashboard:
    """What a study shows: result, cost, learning curves, pictures, failures, runs.

    Sections for which the study has nothing are left out, but for the list of runs.
    """
    settings = by_setting(study.cells)
    sections = [
        _result_section(study, settings),
        _findings_section(settings),
        _corruption_section(settings),
        _cost_section(settings),
        _curve_section(study, settings),
        _picture_section(settings),
        _run_section(study),
    ]
    return Dashboard(study.title, tuple(section for section in sections if section.panels))


def _result_section(study: Study, settings: dict[Setting, list[Cell]]) -> Section:
    panels: list[Panel] = []
    for setting in settings:
        panels.append(TablePanel(setting_name(setting), "comparison", setting))
    leading = dict.fromkeys(headline_metric(group) for group in settings.values())
    if len(study.cells) > 1:
        panels.append(TablePanel("Differences in words", "sentences"))
    for metric in leading:
        name = metric_name(metric)
        panels.append(BarPanel(f"{_capital(name)} of every cell", metric, "values"))
        if len(study.cells) > 1:
            panels.append(BarPanel(f"Paired differences in {name}", metric, "differences"))
    if len(study.cells) > 1:
        panels.append(TablePanel("Differences in all that varies with the seed", "differences"))
    note = (
        "Intervals are 95 % Student-t intervals over seeds. Differences are taken seed by seed. "
        "Holm p is adjusted over all comparisons of the same metric along norm and pre-training; "
        "those of backbones count apart."
    )
    return Section("Result", tuple(panels), note)


def _findings_section(settings: dict[Setting, list[Cell]]) -> Section:
    panels = _tables_of(settings, "findings", "findings/")
    note = (
        "Statements of arXiv 2210.07646 asked of every run on the same probe set. Numbers are "
        "means over seeds with 95 % t-intervals; a statement is judged run by run, by intervals "
        "over images. Untrained: the same networks at their initial weights; what holds there too "
        "was not learned. Paired differences between cells stand under Result, in the table of all "
        "that varies with the seed."
    )
    return Section("Findings", panels, note)


def _tables_of(
    settings: dict[Setting, list[Cell]], table: TableName, prefix: str
) -> tuple[Panel, ...]:
    """A table for each setting in which a metric has that prefix."""
    return tuple(
        TablePanel(setting_name(setting), table, setting)
        for setting, cells in settings.items()
        if any(name.startswith(prefix) for name in all_metrics(cells))
    )


def _corruption_section(settings: dict[Setting, list[Cell]]) -> Section:
    panels = _tables_of(settings, "corruptions", "corruption/error/")
    note = (
        "Shares of test images that are classified wrongly, means over severities and over seeds "
        "with 95 % t-intervals. Relative to LN: error over that of the LN cell that is equal but "
        "for the norm, seed by seed, averaged over corruptions; less than 100 % is better."
    )
    return Section("Corruptions", panels, note)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cost_section(settings: dict[Setting, list[Cell]]) -> Section:
    panels: list[Panel] = []
    for setting, cells in settings.items():
        panels.append(TablePanel(setting_name(setting), "cost", setting))
        if any(total_seconds(cell) for cell in cells):
            metric = headline_metric(cells)
            title = f"{_capital(metric_name(metric))} against training time"
            panels.append(ScatterPanel(title, "time/total", metric, setting))
    note = (
        "Cost belongs to a kind of model and not to a seed: it is measured once and has no "
        "interval. Training times are those of the runs, with intervals over seeds."
    )
    return Section("Cost", tuple(panels), note)


def _curve_section(study: Study, settings: dict[Setting, list[Cell]]) -> Section:
    panels: list[Panel] = []
    for setting, cells in settings.items():
        runs = [record["cell"] for cell in cells for record in cell.records_by_seed.values()]
        curves = study.curves[study.curves["cell"].isin(runs)]
        found = set(zip(curves["stage"], curves["name"], strict=True))
        for stage, name in sorted(found, key=_curve_order):
            what = "Pre-training" if stage == "pretrain" else "Task"
            title = f"{what}: {name.replace('/', ' ').replace('_', ' ')}"
            panels.append(LinePanel(title, stage, name, setting))
    note = "Lines are means over seeds, an epoch's values averaged; bands span the seeds."
    return Section("Learning curves", tuple(panels), note)


def _curve_order(curve: tuple[str, str]) -> tuple[int, int, str]:
    stage, name = curve
    stage_rank = STAGES.index(stage) if stage in STAGES else len(STAGES)
    kind = name.split("/")[0]
    return stage_rank, ("val", "train").index(kind) if kind in ("val", "train") else 2, name


def _picture_section(settings: dict[Setting, list[Cell]]) -> Section:
    panels: list[Panel] = []
    for setting, cells in settings.items():
        titles: dict[str, str] = {}
        for cell in cells:
            for record in cell.records_by_seed.values():
                known = (*(record.get("pictures") or ()), *record.get("left_out", ()))
                for picture in known:
                    titles.setdefault(picture["name"], picture["title"])
        panels += [ImagePanel(title, name, setting) for name, title in titles.items()]
    note = "The same picture of every cell, seed by seed. A picture opens its file at full size."
    return Section("Pictures", tuple(panels), note)


def _run_section(study: Study) -> Section:
    panels: list[Panel] = []
    if any(record["status"] == "failed" for record in study.records):
        panels.append(TablePanel("Failures", "failures"))
    panels.append(TablePanel("Settings in which the cells differ", "settings"))
    panels.append(TablePanel("All runs", "runs"))
    metrics = all_metrics(study.cells)
    note = "" if metrics else "No run is done yet, so there is no result to show."
    return Section("Runs", tuple(panels), note)
