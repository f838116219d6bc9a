"""One run from configuration to record, pictures and W&B; again, interrupted, and failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from triptych.choices import TaskName
from triptych.composition import to_plain
from triptych.config import RunConfig
from triptych.data.errors import DataError
from triptych.hydra_app import compose_run
from triptych.paths import EXPERIMENTS
from triptych.records import read_json, write_json
from triptych.run import run_cell
from triptych.stages import cell_folder, pretrain_stage, task_stage
from triptych.tasks.progress import Progress


def run(config: RunConfig) -> tuple[dict[str, Any], list[Progress]]:
    heard: list[Progress] = []
    return run_cell(config, heard.append), heard


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, toy_options: list[str]
) -> tuple[RunConfig, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    config = compose_run([*toy_options, f"output_dir={folder}", "norm=dtn", "pretrain=greenmim"])
    return config, run(config)[0]


def test_record_is_whole(done: Any) -> None:
    config, record = done
    assert record == read_json(cell_folder(config) / "record.json")
    assert record["status"] == "done"
    assert record["message"] is None
    assert record["config"] == to_plain(config)
    assert record["labels"]["norm"] == "dtn"
    assert {"torch", "timm", "python"} <= record["versions"].keys()
    assert all(set(metric) == {"value", "unit"} for metric in record["metrics"].values())
    wanted = {
        "test/accuracy",
        "test/loss",
        "time/pretrain",
        "time/task",
        "time/total",
        "cost/parameters",
        "cost/task/macs",
        "cost/task/train_throughput",
        "cost/task/inference_throughput",
        "cost/task/saved_for_backward",
        "cost/pretrain/train_throughput",
    }
    assert wanted <= record["metrics"].keys()


def test_pictures_and_their_numbers_are_there(done: Any) -> None:
    config, record = done
    names = {picture["name"] for picture in record["pictures"]}
    assert names == {
        "reconstruction",
        "attention_distance",
        "token_variation",
        "class_relevance",
    }
    seconds, trained = record["timings"]["visualize"], record["metrics"]["time/total"]["value"]
    assert record["metrics"]["time/visualize"] == {"value": seconds, "unit": "s"}
    share = record["metrics"]["time/visualize/share"]["value"]
    assert share == pytest.approx(seconds / trained)
    for picture in record["pictures"]:
        assert (cell_folder(config) / picture["file"]).read_bytes()[:4] == b"\x89PNG"
        assert len((cell_folder(config) / picture["numbers"]).read_text().splitlines()) > 1


def test_weights_stand_beside_the_record(done: Any) -> None:
    from safetensors.torch import load_file

    from triptych.assembly import build_model

    config, _ = done
    folder = cell_folder(config) / "checkpoints"
    names = {path.stem for path in folder.iterdir()}
    assert names == {"task", "pretrain", "pretrained_backbone"}
    build_model(config, 3).load_state_dict(load_file(folder / "task.safetensors"))


def test_curves_of_both_stages_stand_beside_the_record(done: Any) -> None:
    config, record = done
    lines = (cell_folder(config) / record["curves"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {(row["stage"], row["name"]) for row in rows} >= {
        ("pretrain", "train/loss"),
        ("task", "train/loss"),
        ("task", "test/accuracy"),
        ("pretrain", "dtn/layers.0.blocks.0.norm1/lambda_mean/head0"),
        ("task", "dtn/layers.0.blocks.0.norm1/width/head1"),
    }
    last = [row["value"] for row in rows if row["name"] == "test/accuracy"][-1]
    assert last == pytest.approx(record["metrics"]["test/accuracy"]["value"])


def test_wandb_has_one_offline_run_with_scalars_pictures_and_summary(done: Any) -> None:
    config, record = done
    files = list((cell_folder(config) / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    wandb = Path(sys.executable).parent / "wandb"
    asked = subprocess.run(
        [str(wandb), "leet", "inspect", "--summary", "--json", str(files[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    curves = ("test/accuracy", "task/train/loss", "pretrain/train/loss")
    for text in (*curves, "pictures/class_relevance"):
        assert text in asked.stdout
    assert "dtn/pretrain/layers.0.blocks.0.norm1/lambda_mean/head0" in asked.stdout
    assert record["study"] in asked.stdout


def test_finetuning_starts_from_the_pretrained_features(done: Any) -> None:
    """The backbone file of pre-training is the fine-tuned network's own state dict."""
    from safetensors.torch import load_file

    from triptych.assembly import build_model

    config, _ = done
    model = build_model(config, 3)
    stored = load_file(pretrain_stage(config).folder / "backbone.safetensors")
    assert stored.keys() == model.state_dict().keys()
    fresh = model.state_dict()
    assert any(not torch.equal(stored[name], fresh[name]) for name in stored)


def test_given_again_nothing_is_computed(done: Any) -> None:
    config, record = done
    before = {path: path.stat().st_mtime_ns for path in Path(config.output_dir).rglob("*")}
    again, heard = run(config)
    assert again == record
    assert heard == []
    assert before == {path: path.stat().st_mtime_ns for path in Path(config.output_dir).rglob("*")}


def test_pretraining_serves_another_task_run(done: Any, toy_options: list[str]) -> None:
    config, record = done
    other = compose_run(
        [
            *toy_options,
            f"output_dir={config.output_dir}",
            "norm=dtn",
            "pretrain=greenmim",
            "task.learning_rate=1e-3",
            "logger=none",
        ]
    )
    stamp = (pretrain_stage(config).folder / "done.json").stat().st_mtime_ns
    again, _ = run(other)
    assert again["status"] == "done"
    assert again["cell"] != record["cell"]
    assert (pretrain_stage(other).folder / "done.json").stat().st_mtime_ns == stamp
    assert again["metrics"]["time/pretrain"] == record["metrics"]["time/pretrain"]


@pytest.mark.parametrize("study", sorted(p.parent.name for p in EXPERIMENTS.glob("*/study.yaml")))
def test_every_study_runs_at_toy_size(study: str, toy: list[str]) -> None:
    params = yaml.safe_load((EXPERIMENTS / study / "study.yaml").read_text())
    grid = params["hydra"]["sweeper"]["params"]
    last = [f"{key}={str(values).split(',')[-1]}" for key, values in grid.items()]
    beside = [*toy, "logger=none", "measure=none"]
    config = compose_run([f"+{study}=study", *last])
    if config.backbone.name != "swin_nano":  # the toy widths and depths are those of a Swin
        beside = [item for item in beside if not item.startswith("backbone.")]
    if config.data.name.holds_sequences:  # and the toy data are images
        beside = [item for item in beside if not item.startswith("data")]
        beside += ["data.train_sequences=16", "data.test_sequences=8"]
    if config.task.name is TaskName.detection:  # nor have they boxes
        beside = [item for item in beside if not item.startswith(("data", "task.label"))]
        beside += ["data.scenes=20", "data.image_size=32"]
    record, _ = run(compose_run([f"+{study}=study", *last, *beside]))
    assert record["status"] == "done"


def test_failure_is_recorded_with_its_message(toy: list[str], tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    options = [item for item in toy if not item.startswith("data")]
    config = compose_run([*options, "data=image_folder", f"data.root={root}", "logger=none"])
    with pytest.raises(DataError) as failure:
        run(config)
    assert str(root) in str(failure.value)
    record = read_json(cell_folder(config) / "record.json")
    assert record["status"] == "failed"
    assert record["message"] == f"DataError: {failure.value}"
    assert "Traceback" in (cell_folder(config) / "traceback.txt").read_text()


def _start(config: RunConfig) -> subprocess.Popen[bytes]:
    folder = cell_folder(config)
    write_json(folder / "config.json", to_plain(config))
    return subprocess.Popen(
        [sys.executable, "-m", "triptych", "cell", str(folder / "config.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def _wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_process_goes_on_to_the_same_result(
    toy: list[str], tmp_path: Path, number: int
) -> None:
    """A real kill of a real process, in the middle of training."""
    overrides = [*toy, "logger=none", "measure=none", "visualize=none", "task.epochs=60"]
    overrides.append("trainer.checkpoint_every=5")
    config = compose_run(overrides)
    process = _start(config)
    _wait_for(task_stage(config).folder / "last.ckpt.previous")
    process.send_signal(number)
    status = process.wait(60)
    record = read_json(cell_folder(config) / "record.json")
    if number == signal.SIGTERM:
        assert status == 143
        assert record["status"] == "preempted"
    else:
        assert status == -9
        assert record["status"] == "running"
    interrupted, _ = run(config)
    whole, _ = run(compose_run([*overrides, f"output_dir={tmp_path / 'whole'}"]))
    for name in ("test/accuracy", "test/loss"):
        assert interrupted["metrics"][name] == whole["metrics"][name]
    curves = [cell_folder(config) / "metrics.jsonl"]
    curves.append(next((tmp_path / "whole").rglob("runs/*/metrics.jsonl")))
    assert curves[0].read_text() == curves[1].read_text()
