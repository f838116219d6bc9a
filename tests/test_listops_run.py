"""Runs on ListOps, end to end: record, curves, cost, pictures, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triptych.hydra_app import compose_run
from triptych.records import read_json
from triptych.run import run_cell
from triptych.stages import cell_folder, task_stage
from triptych.tasks.callbacks import Checkpointing

SMALL = [
    *("data=listops_short", "task=listops", "logger=none"),
    *("data.min_length=8", "data.max_length=40", "data.train_sequences=32"),
    *("data.test_sequences=10", "backbone.block_size=4", "backbone.embed_dim=16"),
    *("task.epochs=2", "task.batch_size=8", "task.warmup_epochs=0.5"),
    *("measure.rounds=3", "measure.batch_size=2"),
]


def run(config: Any) -> dict[str, Any]:
    return run_cell(config, lambda _: None)


@pytest.mark.parametrize("backbone", ["transformer_nano", "bigbird_nano", "reformer_nano"])
def test_record_curves_cost_and_pictures(backbone: str, tmp_path: Path) -> None:
    overrides = [*SMALL, f"backbone={backbone}", "norm=dtn", f"output_dir={tmp_path}"]
    config = compose_run(overrides)
    record = run(config)
    assert record == read_json(cell_folder(config) / "record.json")
    assert record["status"] == "done"
    assert (record["labels"]["data"], record["labels"]["task"]) == ("listops_short", "listops")
    metrics = record["metrics"]
    assert 0 <= metrics["test/accuracy"]["value"] <= 1
    assert 0 < metrics["test/accuracy_commonest"]["value"] < 1
    assert metrics["cost/task/train_throughput"]["unit"] == "sequences/s"
    assert metrics["cost/task/saved_for_backward"]["unit"] == "MiB/sequence"
    assert metrics["cost/task/macs"]["value"] > 0
    assert {picture["name"] for picture in record["pictures"]} == {"dtn_mixing", "dtn_kernels"}
    curves = (cell_folder(config) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in curves]
    assert {"train/loss", "test/accuracy", "test/loss"} <= {row["name"] for row in rows}


@pytest.mark.parametrize("backbone", ["bigbird_nano", "reformer_nano"])
def test_a_stopped_run_goes_on_to_the_same_result(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = ["norm=dtn", "measure=none", "visualize=none", "trainer.checkpoint_every=1"]
    overrides = [*SMALL, f"backbone={backbone}", *beside]
    whole = compose_run([*overrides, f"output_dir={tmp_path / 'whole'}"])
    stopped = compose_run([*overrides, f"output_dir={tmp_path / 'stopped'}"])
    want = run(whole)
    save = Checkpointing._save
    calls = []

    def break_off(self: Checkpointing, trainer: Any) -> None:
        save(self, trainer)
        calls.append(trainer.global_step)
        if trainer.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointing, "_save", break_off)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(stopped)
    monkeypatch.setattr(Checkpointing, "_save", save)
    assert calls == [1, 2]
    assert (task_stage(stopped).folder / "last.ckpt").exists()
    got = run(stopped)
    for name in ("test/accuracy", "test/loss"):
        assert got["metrics"][name] == want["metrics"][name]
