"""task=visualization from weights to record: runs, files, timm models; photographs; again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from triptych.config import ConfigError, RunConfig
from triptych.data import voc
from triptych.data.errors import DataError
from triptych.export import export
from triptych.hydra_app import compose_run
from triptych.mim.weights import WeightsError
from triptych.run import run_cell
from triptych.stages import cell_folder, study_folder
from triptych.study.outcome import report
from triptych.study.processes import write_manifest

PLAIN = ["measure=none", "logger=none"]
FEW = ["visualize.images=2", "visualize.probe_images=5", "logger=none"]
LIGHT = [*FEW, "visualize=light"]
TIMM = ["backbone=timm", "backbone.timm_name=vit_tiny_patch16_224", "data.image_size=32"]


def look(output: Path, *overrides: str) -> tuple[RunConfig, dict[str, Any]]:
    config = compose_run(["task=visualization", f"output_dir={output}", *overrides])
    return config, run_cell(config, lambda _progress: None)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "pictures" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def trained(output: Path, toy_options: list[str]) -> tuple[Path, dict[str, Any]]:
    """A run with DTN and GreenMIM, with the pictures that it made itself."""
    options = [*toy_options, *PLAIN, f"output_dir={output}", "norm=dtn", "pretrain=greenmim"]
    config = compose_run([*options, "seed=1"])
    return cell_folder(config), run_cell(config, lambda _progress: None)


@pytest.fixture(scope="module")
def plain(output: Path, toy_options: list[str]) -> Path:
    """A run with LN alone."""
    config = compose_run([*toy_options, *PLAIN, f"output_dir={output}"])
    run_cell(config, lambda _progress: None)
    return cell_folder(config)


@pytest.fixture(scope="module")
def looked(output: Path, trained: Any) -> tuple[RunConfig, dict[str, Any]]:
    return look(output, f"task.run={trained[0]}", *FEW, "study=looked")


def test_a_trained_run_gives_a_whole_record(looked: Any, trained: Any) -> None:
    config, record = looked
    assert record["status"] == "done"
    assert record["labels"] == trained[1]["labels"] | {"task": "visualization"}
    assert record["remarks"] == [f"Weights: the run {trained[0].name}."]
    assert set(record["timings"]) == {"load", "visualize"}
    names = {picture["name"] for picture in record["pictures"]}
    assert names >= {
        *("reconstruction", "rollout", "attention_distance", "token_magnitude", "filters"),
        *("views", "view_spread", "class_relevance", "dtn_mixing", "dtn_kernels"),
        *("findings", "robustness", "faithfulness", "embedding"),
    }
    for picture in record["pictures"]:
        assert (cell_folder(config) / picture["file"]).read_bytes()[:4] == b"\x89PNG"
        assert len(table(cell_folder(config), picture["name"])) > 0
    assert record["metrics"]["attention/distance/mean"]["unit"] == "pixels"


def test_pictures_are_those_that_the_run_made_itself(looked: Any, trained: Any) -> None:
    """The same weights on the same images: bytes agree."""
    ours, theirs = cell_folder(looked[0]), trained[0]
    for picture in trained[1]["pictures"]:
        for kind in ("file", "numbers"):
            assert (ours / picture[kind]).read_bytes() == (theirs / picture[kind]).read_bytes()


def test_what_is_left_out_says_why(looked: Any) -> None:
    config, record = looked
    assert record["left_out"] == [
        {
            "name": "grouping",
            "title": "Grouping of object tokens by layer",
            "reason": "no image has the masks of two objects of three tokens each",
        }
    ]
    write_manifest(study_folder(config), [record["cell"]])
    page = report(study_folder(config), Console(quiet=True)).read_text()
    assert "Left out: no image has the masks of two objects of three tokens each." in page


def test_given_again_nothing_is_computed(looked: Any) -> None:
    config, record = looked
    folder = cell_folder(config)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run_cell(config, lambda _progress: None) == record
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_photographs_through_a_trained_run(output: Path, trained: Any) -> None:
    config, record = look(output, f"task.run={trained[0]}", "data=photographs", *FEW)
    assert record["status"] == "done"
    left_out = {item["name"]: item["reason"] for item in record["left_out"]}
    assert left_out["grouping"] == "no image has the masks of two objects of three tokens each"
    assert left_out["findings"] == "none of the statements can be asked of these images"
    assert record["remarks"][1:] == [
        "Photographs: chelsea, astronaut ….",
        "Photographs have no labels: robustness is agreement with the undisturbed prediction.",
    ]
    assert all("Photographs: chelsea" in picture["caption"] for picture in record["pictures"])
    rows = table(cell_folder(config), "robustness")
    assert {row["number"] for row in rows} == {"agreement"}
    assert {row["disturbance"] for row in rows} == {"none", "drop random", "shuffle"}


def test_other_data_have_other_labels(output: Path, plain: Path) -> None:
    _, record = look(output, f"task.run={plain}", "data=digits", *LIGHT)
    assert record["remarks"][-1] == (
        "The labels of digits are not the network's classes: robustness is agreement with the "
        "undisturbed prediction."
    )


def test_a_file_gives_the_pictures_of_the_run_it_came_from(
    output: Path, plain: Path, toy_options: list[str]
) -> None:
    file = output / "exported.safetensors"
    export(plain, file)
    same = [option for option in toy_options if option.startswith(("data", "backbone"))]
    config, record = look(output, f"task.checkpoint={file}", *same, *LIGHT)
    assert record["labels"]["pretrain"] == "checkpoint"
    assert record["remarks"] == ["Weights: the file exported.safetensors."]
    for name in ("class_relevance", "attention_distance"):
        assert table(cell_folder(config), name) == table(plain, name)


def test_a_file_without_a_classifier_has_no_classes(output: Path, plain: Path) -> None:
    state = load_file(plain / "checkpoints" / "task.safetensors")
    features = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    save_file(features, output / "features.safetensors")
    narrow = ["backbone.depths=[1,1]", "backbone.embed_dim=16"]
    size = ["data=photographs", "data.image_size=32", "data.channels=1"]
    file = f"task.checkpoint={output}/features.safetensors"
    _, record = look(output, file, *narrow, *size, *FEW)
    reasons = {item["name"]: item["reason"] for item in record["left_out"]}
    for name in ("class_relevance", "robustness", "faithfulness"):
        assert reasons[name] == "the weights hold no classifier"


def test_any_timm_model_from_a_local_file(output: Path) -> None:
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4)
    torch.save({"state_dict": model.state_dict()}, output / "timm.pth")
    config, record = look(output, *TIMM, f"task.checkpoint={output}/timm.pth", *LIGHT)
    assert record["labels"]["backbone"] == "vit_tiny_patch16_224"
    classes = {int(row["class"]) for row in table(cell_folder(config), "class_relevance")}
    assert classes <= set(range(4))
    _, again = look(output, *TIMM, f"task.checkpoint={output}/timm.pth", *LIGHT, "seed=1")
    ours, theirs = record["metrics"], again["metrics"]
    assert ours == theirs  # the seed moves random weights alone, and these are from the file


def test_untrained_weights_are_said_in_every_picture(output: Path) -> None:
    _, record = look(output, *TIMM, "task.weights=untrained", *LIGHT)
    assert record["labels"]["pretrain"] == "untrained"
    assert all("Untrained: the weights are" in picture["caption"] for picture in record["pictures"])


def test_published_weights_that_cannot_be_had(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(output / "no_cache"))
    with pytest.raises(WeightsError) as failure:
        look(output, *TIMM, *LIGHT)
    told = str(failure.value)
    assert told.startswith(
        "the published weights of vit_tiny_patch16_224 are neither in the cache nor to be had from "
        "the network ("
    )
    assert told.endswith("give task.checkpoint=FILE, or ask for task.weights=untrained")


def test_pascal_voc_has_masks_and_no_labels(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images of two objects; its masks stand in for the guessed ones."""
    place = tmp_path / "VOCdevkit" / "VOC2012"
    random = np.random.default_rng(0)
    ids = np.zeros((64, 64), dtype=np.uint8)
    ids[:32, :32], ids[40:, 30:] = 1, 2
    for folder in voc.FOLDERS:
        (place / folder).mkdir(parents=True)
    for number in range(5):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(ids).save(place / "SegmentationObject" / f"{number}.png")
        (place / "Annotations" / f"{number}.xml").write_text(
            "<annotation><object><name>cat</name></object><object><name>dog</name></object>"
            "</annotation>"
        )
    monkeypatch.setitem(voc.EXPECTED, "2012", 5)
    small = ["backbone.patch_size=4", "data.image_size=32", "task.weights=untrained"]
    images = ["data=voc_2012", f"data.root={tmp_path}"]
    config, record = look(output, "backbone=vit_nano", *small, *images, *FEW)
    assert not record["left_out"] or {one["name"] for one in record["left_out"]} == {
        "reconstruction"
    }
    views = next(one for one in record["pictures"] if one["name"] == "views")
    assert "The data has no masks" not in views["caption"]
    kinds = {row["disturbance"] for row in table(cell_folder(config), "robustness")}
    assert kinds == {"none", "drop random", "drop salient", "drop non_salient", "shuffle"}


def test_pascal_voc_that_is_not_there(output: Path, tmp_path: Path) -> None:
    images = ["data=voc_2012", f"data.root={tmp_path}", "data.image_size=32"]
    with pytest.raises(DataError, match=r"is no Pascal VOC 2012: .* 0 were found"):
        look(output, "backbone=vit_nano", "task.weights=untrained", *images, *LIGHT)


def test_weights_that_do_not_fit(output: Path, plain: Path) -> None:
    file = plain / "checkpoints" / "task.safetensors"
    with pytest.raises(WeightsError, match="does not fit the backbone: it lacks"):
        look(output, "backbone=vit_nano", "data.image_size=32", f"task.checkpoint={file}", *LIGHT)


def test_a_model_without_attention(output: Path) -> None:
    options = ["backbone=timm", "backbone.timm_name=resnet18", "task.weights=untrained"]
    with pytest.raises(ConfigError) as failure:
        look(output, *options, *LIGHT)
    assert str(failure.value) == (
        "backbone.timm_name=resnet18 has no attention maps to look at: cannot capture a ResNet; "
        "give one of VisionTransformer, SwinTransformer, Twins, PyramidVisionTransformerV2, Levit, "
        "ReleasedViT, ReleasedPvt or T2TViT"
    )


def test_a_name_that_timm_does_not_know(output: Path) -> None:
    options = ["backbone=timm", "backbone.timm_name=vit_tiny", "task.weights=untrained"]
    with pytest.raises(ConfigError, match=r"vit_tiny cannot be built .* timm has no model 'vit_ti"):
        look(output, *options, *LIGHT)
