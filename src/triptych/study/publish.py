"""Put the outcome of a study beside its definition, to be committed: tables, pictures, words."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.records import RecordError, write_atomically
from triptych.study import plots
from triptych.study.cells import by_setting, group_cells, headline_metric
from triptych.study.comparisons import difference_sentence, headline_comparisons
from triptych.study.corruptions import corruption_table
from triptych.study.findings import findings_table
from triptych.study.outcome import study_records
from triptych.study.report import CORRUPTIONS, DIFFERENCES, FINDINGS, SUMMARY, agreed_facts
from triptych.study.tables import (
    COST_METRICS,
    differences_table,
    mean_text,
    summary_table,
)
from triptych.study.wording import metric_name, setting_name, value_name

PICTURES = (
    *("reconstruction", "rollout", "class_relevance", "token_magnitude", "attention_distance"),
    *("findings", "grouping", "robustness"),
    *("corruptions", "perturbation", "resolution", "detections"),
)
Record = Mapping[str, Any]


def publish(study: Path, experiments: Path, readme: Path) -> Path:
    """Write ``experiments``/<study>/results from the records in ``study``, whole studies only.

    ``readme`` gets the result between its markers, if it has markers for this study.

    Raises:
        RecordError: a cell is not done, or the study has no folder in ``experiments``.
    """
    records, missing = study_records(study)
    undone = [*missing, *(r["cell"] for r in records if r["status"] != "done")]
    if undone:
        raise RecordError(
            f"{len(undone)} cells of {study} are not done (the first is {undone[0]}); complete the "
            "study before its outcome is published."
        )
    if not (experiments / study.name).is_dir():
        raise RecordError(f"{experiments / study.name} does not exist; a study is published there.")
    target = experiments / study.name / "results"
    shutil.rmtree(target, ignore_errors=True)
    write_atomically(target / SUMMARY, summary_table(records).to_csv(index=False))
    write_atomically(target / DIFFERENCES, differences_table(records).to_csv(index=False))
    findings = findings_table(records, study)
    if len(findings):
        write_atomically(target / FINDINGS, findings.to_csv(index=False))
    corruptions = corruption_table(records)
    if len(corruptions):
        write_atomically(target / CORRUPTIONS, corruptions.to_csv(index=False))
    _draw(records, target)
    _copy_pictures(records, study, target)
    text = result_text(records)
    write_atomically(target / "result.md", f"# {study.name}\n\n{text}")
    _into_readme(readme, study.name, text)
    return target


def result_text(records: Sequence[Record]) -> str:
    """Tables and findings as Markdown, with hardware, versions and commit."""
    cells = group_cells(records)
    findings = headline_comparisons(cells)
    parts = []
    for setting, group in by_setting(cells).items():
        metric = headline_metric(group)
        columns = [metric, *COST_METRICS]
        names = " | ".join(metric_name(column) for column in columns)
        lines = [f"| norm | pre-training | seeds | {names} |", "|---" * (3 + len(columns)) + "|"]
        for cell in group:
            values = " | ".join(mean_text(cell, column) for column in columns)
            label = f"{value_name(cell.norm)} | {value_name(cell.pretrain)}"
            lines.append(f"| {label} | {len(cell.values(metric))} | {values} |")
        said = [
            f"- {difference_sentence(item)}"
            for item in findings
            if item.first.setting == setting and item.second.setting == setting
        ]
        parts += [f"**{setting_name(setting)}**", "\n".join(lines), "\n".join(said)]
    facts = "; ".join(f"{name.lower()}: {text}" for name, text in agreed_facts(records).items())
    parts.append(f"Means with 95 % t intervals over seeds; {facts}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _draw(records: Sequence[Record], target: Path) -> None:
    cells = group_cells(records)
    metric = headline_metric(cells)
    _save(plots.values(cells, metric), target / "accuracy.png")
    _save(plots.scatter(cells, "time/total", metric), target / "accuracy_against_time.png")
    found = headline_comparisons(cells)
    if found:
        _save(plots.differences(found), target / "differences.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def _copy_pictures(records: Sequence[Record], study: Path, target: Path) -> None:
    """The pictures of the lowest seed, named after their cell."""
    seed = min(int(record["labels"]["seed"]) for record in records)
    for record in records:
        if int(record["labels"]["seed"]) != seed:
            continue
        labels = record["labels"]
        stem = f"{labels['backbone']}-{labels['norm']}-{labels['pretrain']}"
        for picture in record["pictures"]:
            if picture["name"] in PICTURES:
                source = study / "runs" / record["cell"] / picture["file"]
                shutil.copyfile(source, target / f"{stem}-{picture['name']}.png")


def _into_readme(readme: Path, study: str, text: str) -> None:
    start, end = f"<!-- {study}:start -->", f"<!-- {study}:end -->"
    page = readme.read_text()
    if start not in page:
        return
    before, rest = page.split(start)
    after = rest.split(end)[1]
    picture = f"![Accuracy of every cell](experiments/{study}/results/accuracy.png)"
    write_atomically(readme, f"{before}{start}\n\n{picture}\n\n{text}\n{end}{after}")
