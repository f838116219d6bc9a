"""The outcome of a study, put beside its definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.records import RecordError
from triptych.study.processes import MANIFEST
from triptych.study.publish import publish, result_text


@pytest.fixture
def place(
    tmp_path_factory: pytest.TempPathFactory, records, write_study
) -> tuple[Path, Path, Path]:
    """The study's folder as runs leave it, an experiments folder and a README with markers."""
    tmp_path = tmp_path_factory.mktemp("publish")
    study_folder = write_study(records)
    for record in records:
        path = study_folder / "runs" / record["cell"] / "record.json"
        path.write_text(json.dumps(record))
    names = [record["cell"] for record in records]
    (study_folder / MANIFEST).write_text(json.dumps({"cells": names}))
    experiments = tmp_path / "experiments"
    (experiments / study_folder.name).mkdir(parents=True)
    readme = tmp_path / "README.md"
    start, end = (f"<!-- {study_folder.name}:{edge} -->" for edge in ("start", "end"))
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    return study_folder, experiments, readme


def test_results_hold_tables_pictures_and_words(place, records) -> None:
    study, experiments, readme = place
    target = publish(study, experiments, readme)
    names = {path.name for path in target.iterdir()}
    assert {"summary.csv", "differences.csv", "result.md", "accuracy.png"} <= names
    assert "swin_nano-dtn-greenmim-rollout.png" in names
    page = readme.read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "\nold\n" not in page
    assert result_text(records) in page


def test_published_again_it_is_the_same(place) -> None:
    study, experiments, readme = place
    target = publish(study, experiments, readme)
    first = {path.name: path.read_bytes() for path in target.iterdir()} | {"R": readme.read_bytes()}
    publish(study, experiments, readme)
    again = {path.name: path.read_bytes() for path in target.iterdir()} | {"R": readme.read_bytes()}
    assert first == again


def test_unfinished_study_is_not_published(place, records) -> None:
    study, experiments, readme = place
    path = study / "runs" / records[3]["cell"] / "record.json"
    path.write_text(json.dumps(records[3] | {"status": "failed"}))
    with pytest.raises(RecordError) as refusal:
        publish(study, experiments, readme)
    assert str(refusal.value) == (
        f"1 cells of {study} are not done (the first is {records[3]['cell']}); complete the study "
        "before its outcome is published."
    )
    assert "\nold\n" in readme.read_text()
