"""A detector trained on a folder in COCO's layout, from the command to the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.config import RunConfig
from triptych.data import DataError
from triptych.hydra_app import compose_run
from triptych.run import run_cell
from triptych.stages import task_stage
from triptych.training import WEIGHTS

OPTIONS = [
    "task=detection",
    "task.epochs=1",
    "task.warmup_epochs=0",
    "task.batch_size=4",
    "task.detector.channels=16",
    "data=coco_folder",
    "data.image_size=64",
    "data.short_side=40",
    "data.long_side=64",
    "data.training_sides=[32,40]",
    "data.workers=0",
    "backbone.depths=[1,1]",
    "backbone.embed_dim=16",
    "measure=none",
    "logger=none",
    "visualize.images=2",
]


def config(root: Path, folder: Path, *more: str) -> RunConfig:
    return compose_run([*OPTIONS, f"data.root={root}", f"output_dir={folder}", *more])


def test_norms_detectors_and_workers_go_with_it(coco_root: Path, tmp_path: Path) -> None:
    whole = config(coco_root, tmp_path, "norm=dtn", "task.detector.kind=mask_rcnn")
    record = run_cell(whole, lambda _: None)
    assert record["status"] == "done"
    for name in ("test/box_ap", "test/mask_ap"):
        assert 0 <= record["metrics"][name]["value"] <= 1
    assert (task_stage(whole).folder / WEIGHTS).exists()


def test_workers_change_nothing(coco_root: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        own = config(
            coco_root, tmp_path / str(workers), f"data.workers={workers}", "visualize=none"
        )
        assert run_cell(own, lambda _: None)["status"] == "done"
        found.append(load_file(task_stage(own).folder / WEIGHTS))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_boxes_alone_are_enough_without_masks(coco_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "boxes"
    shutil.copytree(coco_root, root)
    for file in (root / "annotations").iterdir():
        found = json.loads(file.read_text())
        for item in found["annotations"]:
            del item["segmentation"]
        file.write_text(json.dumps(found))
    record = run_cell(config(root, tmp_path), lambda _: None)
    assert record["status"] == "done"
    assert record["pictures"][0]["name"] == "detections"
    masks = config(root, tmp_path, "task.detector.kind=mask_rcnn")
    with pytest.raises(
        DataError, match="has no segmentation; a detector that predicts masks needs"
    ):
        run_cell(masks, lambda _: None)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    nowhere = tmp_path / "coco"
    with pytest.raises(DataError, match=f"there is no folder {nowhere} with COCO's annotations"):
        run_cell(config(nowhere, tmp_path), lambda _: None)
