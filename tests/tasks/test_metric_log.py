"""Curves on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.records import RecordError
from triptych.tasks.metric_log import MetricLog, read_rows


def test_rows_reach_listeners_once(tmp_path: Path) -> None:
    heard: list[dict] = []
    log = MetricLog(tmp_path / "m.jsonl", "task", (heard.extend,))
    log.append(0, 10, {"train/loss": 1.5, "test/accuracy": 0.5})
    assert heard == log.rows()
    assert [row["name"] for row in heard] == ["train/loss", "test/accuracy"]


def test_rewind_forgets_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "m.jsonl", "task")
    for step in (10, 20, 30):
        log.append(step // 10, step, {"train/loss": float(step)})
    log.rewind(3)
    assert [row["epoch"] for row in log.rows()] == [1, 2]


def test_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_rows(path) == [{"step": 1}]


def test_damage_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step"\n{"step": 2}\n')
    with pytest.raises(RecordError, match=r"line 1 of .* is damaged; delete the folder"):
        read_rows(path)
