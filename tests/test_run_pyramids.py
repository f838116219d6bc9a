"""Masked pre-training and fine-tuning of Twins and PVT, from the command to the record."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from triptych.hydra_app import compose_run
from triptych.run import run_cell
from triptych.stages import cell_folder, pretrain_stage
from triptych.training import BACKBONE

WIDTHS = {"twins_svt": 2, "twins_pcpvt": 2, "pvt": 3, "pvt_v2": 2}


@pytest.mark.parametrize(
    ("family", "pretrain"),
    [
        ("twins_svt", "greenmim"),
        ("twins_pcpvt", "greenmim"),
        ("pvt", "greenmim"),
        ("pvt_v2", "greenmim"),
        ("pvt_v2", "standard"),
    ],
)
def test_a_run_with_pre_training(family: str, pretrain: str, toy: list[str]) -> None:
    stages = WIDTHS[family]
    options = [item for item in toy if not item.startswith("backbone.")]
    config = compose_run(
        [
            *options,
            f"backbone={family}_nano",
            f"backbone.depths={[1] * stages}",
            f"backbone.embed_dims={[16, 24, 32][:stages]}",
            f"backbone.num_heads={[2] * stages}",
            f"pretrain={pretrain}",
            "norm=dtn",
            "logger=none",
            "visualize=none",
        ]
    )
    record = run_cell(config, lambda _: None)
    assert (cell_folder(config) / "record.json").is_file()
    assert record["status"] == "done"
    assert record["labels"]["backbone"] == f"{family}_nano"
    assert record["metrics"]["cost/pretrain/train_throughput"]["value"] > 0
    weights = load_file(pretrain_stage(config).folder / BACKBONE)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
