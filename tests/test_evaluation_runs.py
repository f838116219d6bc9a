"""Probes and examinations as whole runs: what they reuse, record and draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from triptych.assembly import build_model, load_data
from triptych.config import ConfigError, RunConfig
from triptych.data.errors import DataError
from triptych.data.images import ImageData
from triptych.examining import examined_images
from triptych.hydra_app import compose_run
from triptych.mim.weights import WeightsError
from triptych.run import run_cell
from triptych.stages import (
    cell_folder,
    cell_key,
    classifier_config,
    features_stage,
    pretrain_stage,
    task_stage,
)
from triptych.training import test_loader as loader_of

QUICK = ["measure=none", "logger=none", "visualize=none", "data.synthetic_images=48"]


def run(config: RunConfig) -> dict[str, Any]:
    return run_cell(config, lambda _: None)


def value(record: dict[str, Any], name: str) -> float:
    assert record["metrics"][name]["unit"] == "fraction"
    return record["metrics"][name]["value"]


def images_of(config: RunConfig) -> ImageData:
    data = load_data(config)
    assert isinstance(data, ImageData)
    return data


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, toy_options: list[str]) -> list[str]:
    """Runs of this file share a folder, and so their classifier and their features."""
    return [*toy_options, *QUICK, f"output_dir={tmp_path_factory.mktemp('runs')}"]


@pytest.fixture(scope="module")
def robust(options: list[str]) -> tuple[RunConfig, dict[str, Any]]:
    config = compose_run([*options, "norm=dtn", "task=robustness", "visualize=light"])
    return config, run(config)


def test_probes_share_their_features_and_pretraining(options: list[str]) -> None:
    stamps = set()
    for extra in (["task=knn"], ["task=linear_probe"], ["task=knn", "task.label_fraction=0.5"]):
        config = compose_run([*options, "pretrain=greenmim", *extra])
        record = run(config)
        assert record["status"] == "done"
        assert 0 <= value(record, "test/accuracy") <= 1
        assert ("test/loss" in record["metrics"]) == (extra == ["task=linear_probe"])
        stamps.add((features_stage(config).folder / "done.json").stat().st_mtime_ns)
        stamps.add((pretrain_stage(config).folder / "done.json").stat().st_mtime_ns)
        rows = (cell_folder(config) / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(row) for row in rows if '"test/accuracy"' in row][-1]
        assert last["value"] == value(record, "test/accuracy")
    assert len(stamps) == 2


def test_a_probed_network_predicts_what_the_record_says(options: list[str]) -> None:
    """The layer that was fitted to the features is in the weights beside the record."""
    config = compose_run([*options, "task=linear_probe"])
    record = run(config)
    model = build_model(config, 3)
    model.load_state_dict(load_file(cell_folder(config) / "checkpoints" / "task.safetensors"))
    data = images_of(config)
    right = [
        model.eval()(images).argmax(1) == labels
        for images, labels, _ in loader_of(config, data.test)
    ]
    assert float(torch.cat(right).float().mean()) == pytest.approx(value(record, "test/accuracy"))
    untouched = build_model(config, 3).state_dict()
    trained = load_file(task_stage(config).folder / "weights.safetensors")
    changed = {name for name in trained if not torch.equal(trained[name], untouched[name])}
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_keys_of_training_do_not_count_for_a_probe(options: list[str]) -> None:
    plain = compose_run([*options, "task=knn"])
    other = compose_run([*options, "task=knn", "task.epochs=9", "task.batch_size=4"])
    assert cell_key(plain) == cell_key(other)
    assert cell_key(plain) != cell_key(compose_run([*options, "task=knn", "task.neighbours=5"]))


def test_an_examination_reuses_the_classifier(robust: Any, options: list[str]) -> None:
    config, record = robust
    plain = compose_run([*options, "norm=dtn"])
    assert task_stage(classifier_config(config)).key == task_stage(plain).key
    stamp = (task_stage(plain).folder / "done.json").stat().st_mtime_ns
    for task in ("perturbation", "resolution"):
        extra = ["task.test_sizes=[48]"] if task == "resolution" else []
        again = run(compose_run([*options, "norm=dtn", f"task={task}", *extra]))
        assert value(again, "test/accuracy") == value(record, "test/accuracy")
        assert (cell_folder(config).parent / again["cell"] / f"{task}.csv").is_file()
    classified = run(plain)
    assert classified["metrics"]["test/loss"] == record["metrics"]["test/loss"]
    assert classified["metrics"]["time/task"] == record["metrics"]["time/task"]
    assert (task_stage(plain).folder / "done.json").stat().st_mtime_ns == stamp
    same = load_file(cell_folder(config) / "checkpoints" / "task.safetensors")
    theirs = load_file(cell_folder(plain) / "checkpoints" / "task.safetensors")
    assert all(torch.equal(same[name], theirs[name]) for name in theirs)


def test_robustness_record(robust: Any) -> None:
    config, record = robust
    table = pd.read_csv(cell_folder(config) / "corruptions.csv")
    assert len(table) == 75
    assert value(record, "corruption/mean_error") == pytest.approx(table["error"].mean())
    snow = table[table["corruption"] == "snow"]["error"].mean()
    assert value(record, "corruption/error/snow") == pytest.approx(snow)
    clean = 1 - value(record, "test/accuracy")
    assert value(record, "corruption/clean_error") == pytest.approx(clean)
    assert "corruption/mce" not in record["metrics"]
    assert record["remarks"] == []
    names = {picture["name"] for picture in record["pictures"]}
    assert {"corruptions", "corruption_examples", "class_relevance"} <= names


def test_kept_images_serve_other_models(robust: Any, options: list[str]) -> None:
    config, _ = robust
    kept = sorted((Path(config.output_dir) / "stages").glob("corrupted-*/*.npy"))
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 75
    run(compose_run([*options, "task=robustness", "task.corruptions=[fog]", "task.severities=[3]"]))
    again = sorted((Path(config.output_dir) / "stages").glob("corrupted-*/*.npy"))
    assert [path.stat().st_mtime_ns for path in again] == stamps


def test_a_checkpoint_is_examined_without_training(robust: Any, options: list[str]) -> None:
    config, record = robust
    file = cell_folder(config) / "checkpoints" / "task.safetensors"
    extra = [f"task.checkpoint={file}", "task.corruptions=[fog]"]
    found = run(compose_run([*options, "norm=dtn", "task=robustness", *extra]))
    for name in ("test/accuracy", "corruption/error/fog"):
        assert value(found, name) == value(record, name)
    assert found["metrics"]["time/task"]["value"] == 0
    with pytest.raises(WeightsError, match=r"does not fit the backbone"):
        run(compose_run([*options, "norm=ln", "task=robustness", *extra]))


def test_a_checkpoint_of_other_classes(robust: Any, options: list[str]) -> None:
    file = cell_folder(robust[0]) / "checkpoints" / "task.safetensors"
    extra = [f"task.checkpoint={file}", "data.synthetic_classes=4"]
    with pytest.raises(WeightsError) as failure:
        run(compose_run([*options, "norm=dtn", "task=perturbation", *extra]))
    assert str(failure.value) == (
        f"{file} holds no classifier for these images: head.fc.weight of shape (4, 32) is needed, "
        "and it has one of shape (3, 32); give the weights of a network that was fine-tuned on the "
        "same classes"
    )


def test_a_part_of_the_test_images(options: list[str]) -> None:
    config = compose_run([*options, "task=perturbation", "task.test_images=6"])
    part = examined_images(config, images_of(config))
    assert part.labels.bincount().tolist() == [2, 2, 2]
    record = run(config)
    table = pd.read_csv(cell_folder(config) / "perturbation.csv")
    assert set(table["images"]) == {6}
    assert "perturbation/shuffle" in record["metrics"]
    few = compose_run([*options, "task=perturbation", "task.test_images=2"])
    with pytest.raises(ConfigError) as failure:
        examined_images(few, images_of(few))
    assert str(failure.value) == (
        "task.test_images=2 is less than one image for each of 3 classes; give 3 or more."
    )


def test_images_that_cannot_be_cut_are_refused_before_training(options: list[str]) -> None:
    config = compose_run([*options, "task=perturbation", "data.image_size=8"])
    with pytest.raises(ConfigError) as failure:
        run(config)
    assert str(failure.value) == (
        "data.image_size=8 does not fit task=perturbation: images of 8x8 pixels cannot be cut "
        "into cells; their sides must be multiples of one of [14, 16, 8, 7, 4], with 4 pixels or "
        "more to a cell."
    )
    assert not task_stage(classifier_config(config)).folder.exists()


def test_pictures_of_the_other_tasks(options: list[str]) -> None:
    drawn = {
        "perturbation": {"perturbation", "perturbation_examples"},
        "resolution": {"resolution"},
        "knn": {"rollout"},
    }
    for task, wanted in drawn.items():
        extra = ["task.test_sizes=[24,64]"] if task == "resolution" else []
        config = compose_run([*options, f"task={task}", "visualize=light", *extra])
        names = {picture["name"] for picture in run(config)["pictures"]}
        assert wanted <= names
        assert ("class_relevance" in names) == (task != "knn")


def write_images(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet and an ImageNet-C of two classes; of the latter one set."""
    root = tmp_path_factory.mktemp("imagenet")
    for label in ("n1", "n2"):
        for place in ("train", "val", "c/fog/2"):
            write_images(root / place / label, len(place))
    return root


IMAGENET_C = ["data=imagenet_c", "data.image_size=32", "data.workers=0", "task=robustness"]


def test_published_images(imagenet: Path, options: list[str]) -> None:
    toy = [item for item in options if not item.startswith("data")]
    where = [f"data.root={imagenet}", f"data.corrupted_root={imagenet / 'c'}"]
    whole = [*toy, *IMAGENET_C, *where]
    config = compose_run([*whole, "task.corruptions=[fog]", "task.severities=[2,3]"])
    record = run(config)
    assert record["labels"]["data"] == "imagenet_c"
    assert record["remarks"] == [
        "incomplete: fog/3 is missing",
        "no mCE: 74 of 75 sets are missing",
    ]
    assert not any("mean_error" in name or "mce" in name for name in record["metrics"])
    assert len(pd.read_csv(cell_folder(config) / "corruptions.csv")) == 1
    plain = compose_run([*toy, "data=image_folder", *IMAGENET_C[1:3], where[0]])
    assert task_stage(classifier_config(config)).key == task_stage(plain).key


def test_validation_images_are_enough_for_a_checkpoint(imagenet: Path, options: list[str]) -> None:
    toy = [item for item in options if not item.startswith("data")]
    plain = [*toy, "data=image_folder", *IMAGENET_C[1:3], f"data.root={imagenet}"]
    file = task_stage(compose_run(plain)).folder / "weights.safetensors"
    run(compose_run(plain))
    alone = imagenet.parent / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "val").symlink_to(imagenet / "val")
    where = [f"data.root={alone}", f"data.corrupted_root={imagenet / 'c'}"]
    config = [*toy, *IMAGENET_C, *where, "task.corruptions=[fog]", "task.severities=[2]"]
    record = run(compose_run([*config, f"task.checkpoint={file}"]))
    assert "corruption/error/fog" in record["metrics"]
    with pytest.raises(DataError, match="has a folder val but no folder train"):
        run(compose_run(config))
