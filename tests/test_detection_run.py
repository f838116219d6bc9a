"""Detectors from the command to the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from triptych.assembly import build_model, load_detection
from triptych.choices import Family
from triptych.config import ConfigError, RunConfig
from triptych.detector_assembly import put_detector
from triptych.export import export
from triptych.fitting import detection_parts, start_from_pretraining
from triptych.hydra_app import compose_run
from triptych.matrix import smallest
from triptych.planning import describe, plan_run
from triptych.run import run_cell
from triptych.stages import cell_folder, pretrain_stage, task_stage
from triptych.tasks.detectors import backbone_of
from triptych.tasks.progress import Progress
from triptych.tasks.shares import Share
from triptych.training import BACKBONE, WEIGHTS

TOY = [
    "data=scenes",
    "data.scenes=20",
    "data.image_size=32",
    "task=detection",
    "task.epochs=1",
    "task.warmup_epochs=0",
    "task.batch_size=4",
    "task.detector.channels=16",
    "backbone.depths=[1,1]",
    "backbone.embed_dim=16",
    "pretrain.epochs=1",
    "pretrain.warmup_epochs=0",
    "pretrain.batch_size=8",
    "pretrain.decoder_dim=16",
    "pretrain.decoder_heads=2",
    "measure.rounds=3",
    "measure.batch_size=2",
    "visualize.images=2",
    "logger=none",
]


def config(folder: Path, *more: str) -> RunConfig:
    return compose_run([*TOY, f"output_dir={folder}", *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """Mask R-CNN with DTN after GreenMIM, with all pictures and costs."""
    own = config(
        tmp_path_factory.mktemp("run"), "norm=dtn", "pretrain=greenmim", "visualize=full",
        "task.detector.kind=mask_rcnn",
    )  # fmt: skip
    return own, run_cell(own, lambda _: None)


def test_the_record_has_precision_and_cost(done: tuple[RunConfig, dict[str, Any]]) -> None:
    own, record = done
    assert record["status"] == "done"
    metrics = record["metrics"]
    for name in ("test/box_ap", "test/box_ap50", "test/box_ap75", "test/mask_ap"):
        assert metrics[name]["unit"] == "fraction"
        assert 0 <= metrics[name]["value"] <= 1
    weights = load_file(task_stage(own).folder / WEIGHTS)
    count = metrics["cost/parameters"]["value"]
    assert count == pytest.approx(sum(tensor.numel() for tensor in weights.values()))
    assert metrics["cost/task/train_throughput"]["value"] > 0
    assert metrics["cost/pretrain/train_throughput"]["value"] > 0
    assert record["labels"]["task"] == "detection"


def test_its_curves_have_precision(done: tuple[RunConfig, dict[str, Any]]) -> None:
    lines = (cell_folder(done[0]) / "metrics.jsonl").read_text().splitlines()
    names = {(row["stage"], row["name"]) for row in map(json.loads, lines)}
    assert {("pretrain", "train/loss"), ("task", "train/loss")} <= names


def test_its_pictures_show_the_truth_beside(done: tuple[RunConfig, dict[str, Any]]) -> None:
    own, record = done
    names = [picture["name"] for picture in record["pictures"]]
    assert names[:2] == ["detections", "reconstruction"]
    assert "dtn_kernels" in names
    table = pd.read_csv(cell_folder(own) / "pictures" / "detections.csv")
    truth = table[table.kind == "truth"]
    data = load_detection(own)
    for place in (0, 1):
        objects = data.test.objects(place)
        shown = truth[truth.image == place]
        assert shown[["left", "top", "right", "bottom"]].values.tolist() == objects.boxes.tolist()
        assert shown.mask_pixels.tolist() == objects.masks.sum((1, 2)).tolist()


def test_what_pre_training_learned_reaches_the_detector(
    done: tuple[RunConfig, dict[str, Any]],
) -> None:
    own, _ = done
    module = detection_parts(own, load_detection(own), Share()).module
    given = load_file(pretrain_stage(own).folder / BACKBONE)
    found = backbone_of(module.model).state_dict()  # type: ignore[arg-type]
    assert len(found) > 20
    for name, tensor in found.items():
        assert torch.equal(tensor, given[name]), name
    assert {name.partition(".")[0] for name in set(given) - set(found)} == {"norm", "head"}


def test_so_do_weights_of_a_file_of_another_size(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """The canvas may be larger than the images that the backbone was trained on."""
    file = pretrain_stage(done[0]).folder / BACKBONE
    own = config(
        tmp_path, "norm=dtn", "pretrain=checkpoint", f"pretrain.checkpoint={file}",
        "data.image_size=64",
    )  # fmt: skip
    model = build_model(own, 10)
    start_from_pretraining(own, model)
    found = backbone_of(put_detector(own, model, 10)).state_dict()
    name = "layers.1.blocks.0.mlp.fc1.weight"
    assert torch.equal(found[name], load_file(file)[name])


def test_norms_are_compared_from_the_same_first_weights(tmp_path: Path) -> None:
    first, second = (
        put_detector(own, build_model(own, 10), 10).state_dict()
        for own in (config(tmp_path), config(tmp_path, "norm=dtn"))
    )
    shared = set(first) & set(second)
    assert any("head" in name for name in shared)
    assert all(torch.equal(first[name], second[name]) for name in shared)


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_other_detectors_run(kind: str, tmp_path: Path) -> None:
    own = config(
        tmp_path, f"task.detector.kind={kind}", "measure=none", "visualize=none",
        "task.evaluate_every=1", "task.ema_decay=0.9",
    )  # fmt: skip
    record = run_cell(own, lambda _: None)
    assert record["status"] == "done"
    assert "test/box_ap" in record["metrics"]
    assert "test/mask_ap" not in record["metrics"]
    rows = (cell_folder(own) / "metrics.jsonl").read_text()
    assert "test/box_ap" in rows


def test_stopped_while_testing_it_has_the_training_behind_it(tmp_path: Path) -> None:
    own = config(tmp_path, "measure=none", "visualize=none")

    def stop(progress: Progress) -> None:
        if progress.stage == "test":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(own, stop)
    before = load_file(task_stage(own).folder / WEIGHTS)
    stages: list[str] = []
    record = run_cell(own, lambda progress: stages.append(progress.stage))
    assert "task" not in stages
    assert record["metrics"]["time/task"]["value"] > 0
    assert record["metrics"]["test/box_ap"]["value"] >= 0
    after = load_file(task_stage(own).folder / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_what_asks_a_classifier_refuses_a_detector(done: tuple[RunConfig, dict[str, Any]]) -> None:
    folder = cell_folder(done[0])
    with pytest.raises(ConfigError, match="trained a detector, whose answers are boxes"):
        compose_run(["task=visualization", f"task.run={folder}"])
    plain = config(Path(done[0].output_dir), "measure=none", "visualize=none")
    run_cell(plain, lambda _: None)
    with pytest.raises(ConfigError, match="trained a detector, which is none of timm's models"):
        export(cell_folder(plain), folder / "timm.safetensors")


FAMILIES = [family for family in Family if not family.reads_sequences]


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_step(family: Family, norm: str) -> None:
    timm = ["backbone.timm_name=deit_tiny_patch16_224"] if family is Family.timm else []
    own = compose_run(
        ["data=scenes", "task=detection", "task.detector.channels=16", f"norm={norm}",
         f"backbone={smallest(family)}", *timm]
    )  # fmt: skip
    detector = put_detector(own, build_model(own, 10), 10)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([3])}
    losses = detector(torch.randn(2, 1, 64, 64), [target, target])
    torch.stack(list(losses.values())).sum().backward()
    idle = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_a_plan(tmp_path: Path) -> None:
    text = describe(plan_run(config(tmp_path)))
    assert "16 training and 4 test samples of 10 classes" in text
    assert "4 an epoch × 1 = 4" in text


def test_a_plan_of_coco_that_is_not_there() -> None:
    coco = compose_run(
        ["data=coco", "data.root=/nowhere", "task=detection_retinanet_1x", "data.image_size=128",
         "data.short_side=64", "data.long_side=128", "task.detector.channels=16"]
    )  # fmt: skip
    (stage,) = plan_run(coco).stages
    assert stage.steps_per_epoch == 7329
    assert stage.peak_rate == pytest.approx(1e-4)
    assert stage.warmup_steps == 500


def test_detector_keys_change_the_key_of_the_task_alone(tmp_path: Path) -> None:
    plain = config(tmp_path, "pretrain=greenmim")
    other = config(tmp_path, "pretrain=greenmim", "task.detector.kind=faster_rcnn")
    assert pretrain_stage(plain).key == pretrain_stage(other).key
    assert task_stage(plain).key != task_stage(other).key
    rcnn = ["pretrain=greenmim", "task.detector.kind=faster_rcnn", "trainer.accumulate=2"]
    shared = config(tmp_path, *rcnn)  # draws proposals for each part of a batch
    assert pretrain_stage(plain).key == pretrain_stage(shared).key
    assert task_stage(other).key != task_stage(shared).key
    retina = config(tmp_path, "pretrain=greenmim", "trainer.accumulate=2")
    assert task_stage(plain).key == task_stage(retina).key
    assert "detector" not in task_stage(compose_run([])).parts["task"]
