"""Weights of a run on their way: into the fine-tuned model, out to timm, and back in again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from triptych.assembly import build_model
from triptych.config import ConfigError, RunConfig
from triptych.export import export
from triptych.hydra_app import compose_run
from triptych.run import run_cell
from triptych.stages import cell_folder, pretrain_stage
from triptych.training import start_from_pretraining

SWIN = {
    "img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depths": (1, 1),
    "num_heads": (2, 4), "window_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, toy_options: list[str]) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    config = compose_run(
        [*toy_options, f"output_dir={folder}", "pretrain=greenmim", "measure=none",
         "visualize=none", "logger=none", "task.label_fraction=0.5"]
    )  # fmt: skip
    run_cell(config, lambda _: None)
    return config


def features(model: Any) -> torch.Tensor:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval().forward_features(images)


def pretrained_features(config: RunConfig) -> torch.Tensor:
    model = build_model(config, 3)
    model.load_state_dict(load_file(pretrain_stage(config).folder / "backbone.safetensors"))
    return features(model)


def test_fine_tuning_starts_from_exactly_the_pretrained_features(done: RunConfig) -> None:
    model = build_model(done, 3)
    fresh = features(model)
    start_from_pretraining(done, model)
    assert torch.equal(features(model), pretrained_features(done))
    assert not torch.equal(features(model), fresh)


def test_timm_sees_the_same_features(done: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    words = export(cell_folder(done), path, "pretrained")
    assert words.startswith(f"{path}: ")
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, checkpoint_path=str(path), **SWIN
    )
    assert torch.equal(features(model), pretrained_features(done))


def test_the_network_of_the_task(done: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "task.safetensors"
    export(cell_folder(done), path)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **SWIN).eval()
    model.load_state_dict(load_file(path), strict=True)
    ours = build_model(done, 3).eval()
    ours.load_state_dict(load_file(cell_folder(done) / "checkpoints" / "task.safetensors"))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), ours(images))


def test_an_export_is_a_checkpoint_to_start_from(
    done: RunConfig, toy_options: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "backbone.safetensors"
    export(cell_folder(done), path, "pretrained")
    config = compose_run(
        [*toy_options, f"output_dir={tmp_path}", "pretrain=checkpoint",
         f"pretrain.checkpoint={path}", "measure=none", "visualize=none", "logger=none"]
    )  # fmt: skip
    model = build_model(config, 3)
    start_from_pretraining(config, model)
    assert torch.equal(features(model), pretrained_features(done))
    record = run_cell(config, lambda _: None)
    assert record["status"] == "done"
    assert record["labels"]["pretrain"] == "checkpoint"
    assert record["metrics"]["time/pretrain"]["value"] == 0


def test_the_command(done: RunConfig, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triptych", "export", str(cell_folder(done))]
    path = tmp_path / "task.safetensors"
    written = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    assert written.stdout.startswith(f"{path}: ")
    assert path.is_file()
    refused = subprocess.run([*command], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("triptych: export needs the folder of a run and a file, ")


def test_errors(done: RunConfig, toy_options: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        export(tmp_path, tmp_path / "a.safetensors")
    assert str(error.value) == (
        f"{tmp_path} has no record.json; give the folder of a run, for example "
        "outputs/compare/runs/<cell>."
    )
    checkpoint = cell_folder(done) / "checkpoints" / "pretrained_backbone.safetensors"
    kept = checkpoint.read_bytes()
    checkpoint.unlink()
    try:
        with pytest.raises(ConfigError, match=r"has no checkpoints/pretrained_backbone\."):
            export(cell_folder(done), tmp_path / "a.safetensors", "pretrained")
    finally:
        checkpoint.write_bytes(kept)
