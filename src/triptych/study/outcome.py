"""The end of a study: tables, report, and an exit status that tells the truth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from triptych.records import RECORD, RecordError, read_json, read_record
from triptych.study.processes import MANIFEST


def study_records(study: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of the cells that the study's newest command named, and the names without one.

    Raises:
        RecordError: the folder holds no study.
    """
    manifest = study / MANIFEST
    if not manifest.exists():
        raise RecordError(
            f"{study} holds no study ({MANIFEST} is missing); run one first, for example with "
            "make experiment."
        )
    names = read_json(manifest)["cells"]
    found = {name: read_record(study / "runs" / name) for name in names}
    records = [record for record in found.values() if record is not None]
    return records, [name for name, record in found.items() if record is None]


def conclude(study: Path) -> None:
    """Write the report of ``study``, print its comparison, and exit with 1 if a cell failed."""
    console = Console()
    records, missing = study_records(study)
    report(study, console)
    bad = [record for record in records if record["status"] != "done"]
    for record in bad:
        where = study / "runs" / record["cell"]
        console.print(
            f"{record['status']}: {record['cell']}: {record['message'] or 'no message'} "
            f"(traceback: {where / 'traceback.txt'})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    for name in missing:
        console.print(f"missing: {name} has no {RECORD}", highlight=False, soft_wrap=True)
    if bad or missing:
        console.print(
            f"{len(bad) + len(missing)} of {len(records) + len(missing)} cells are not done; give "
            "the same command again to complete them.",
            highlight=False,
        )
        sys.exit(1)


def report(study: Path, console: Console) -> Path:
    """Write report.html, summary.csv and differences.csv of ``study`` and print the comparison."""
    from triptych.study.report import build_report
    from triptych.study.tables import comparison_text

    records, missing = study_records(study)
    if not records:
        raise RecordError(
            f"none of the {len(missing)} cells of {study} has a record yet; see the logs in "
            f"{study / 'runs'}."
        )
    path = build_report(records, study, title=study.name, missing=missing)
    text = comparison_text(records, width=console.width, color=console.is_terminal)
    print(text)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return path
