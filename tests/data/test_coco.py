"""Folders in COCO's layout: what is read, and what a user reads when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from triptych.data import DataError
from triptych.data.canvas import ResizeRule
from triptych.data.coco import CocoPlaces, read_coco
from triptych.data.detection import DetectionData
from triptych.data.detection_sources import CocoSpec, load_coco

TRAIN = "annotations/instances_train2017.json"
RULE = ResizeRule(48, 64)


@pytest.fixture(scope="module")
def data(coco_root: Path) -> DetectionData:
    return load_coco(CocoSpec(coco_root, canvas=64, resize=RULE))


def test_training_images_without_objects_are_left_out(data: DetectionData) -> None:
    # Image 3 has no object and image 4 a crowd alone.
    assert data.train.image_ids == (100, 101, 102, 105, 106, 107, 108, 109)
    assert data.test.image_ids == tuple(range(100, 106))
    assert data.train.dropped == 1
    assert all(len(data.train.objects(index).labels) for index in range(len(data.train)))
    image, _ = data.train[3]
    assert image.shape == (3, 64, 80)


def test_what_is_not_trained_on_is_said(coco_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_coco(CocoSpec(coco_root, canvas=64, resize=RULE))
    assert caplog.messages == [
        f"{coco_root / TRAIN}: not trained on are 2 of 10 images, which have no object, and 1 "
        "boxes below a pixel"
    ]


def test_crowds_stay_in_the_ground_truth(coco_root: Path) -> None:
    whole = read_coco(coco_root / TRAIN, coco_root / "train2017")
    assert len(whole) == 10
    crowds = [item for item in whole.annotations["annotations"] if item["iscrowd"]]
    assert [item["image_id"] for item in crowds] == [104]
    assert len(whole.objects(4).labels) == 0
    assert whole.objects(3).masks.shape == (0, 40, 56)
    in_file = json.loads((coco_root / TRAIN).read_text())
    key = lambda item: item["id"]  # noqa: E731
    assert sorted(whole.annotations["annotations"], key=key) == in_file["annotations"]


def test_category_numbers_with_gaps_become_labels(data: DetectionData) -> None:
    assert data.category_ids == tuple(range(1, 20, 2))
    assert data.class_names == tuple("0123456789")
    for index in range(len(data.test)):
        items = data.test.packed[index]
        labels = data.test.objects(index).labels
        assert [data.category_ids[label - 1] for label in labels] == [
            item["category_id"] for item in items
        ]


def test_every_notation_of_masks_is_read(data: DetectionData) -> None:
    kinds = set()
    for index in range(len(data.test)):
        objects = data.test.objects(index)
        for item, mask, box in zip(
            data.test.packed[index], objects.masks, objects.boxes.long().tolist(), strict=True
        ):
            left, top, right, bottom = box
            form = item["segmentation"]
            polygon = isinstance(form, list)
            kinds.add("polygon" if polygon else type(form["counts"]).__name__)
            inside = mask[top:bottom, left:right].sum()
            assert inside == mask.sum() > 0
            area = (right - left) * (bottom - top) if polygon else item["area"]
            assert mask.sum() == area
    assert kinds == {"polygon", "list", "str"}


def test_boxes_beyond_the_image_are_cut(coco_root: Path, tmp_path: Path) -> None:
    def widen(found: dict[str, Any]) -> None:
        found["annotations"][0]["bbox"] = [-5, 10, 500, 20]

    root = changed(coco_root, tmp_path, widen)
    objects = read_coco(root / TRAIN, root / "train2017").objects(0, masks=False)
    assert objects.boxes[0].tolist() == [0, 10, 48, 30]


def test_names_may_be_others(coco_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    shutil.copytree(coco_root / "val2017", root / "pictures")
    shutil.copy(coco_root / "annotations/instances_val2017.json", root / "boxes.json")
    places = CocoPlaces("boxes.json", "pictures", "boxes.json", "pictures")
    mine = load_coco(CocoSpec(root, canvas=64, resize=RULE, places=places))
    assert len(mine.train) == len(mine.test) == 6


def changed(coco_root: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the folder whose training annotations are changed."""
    root = tmp_path / "coco"
    shutil.copytree(coco_root, root)
    found = json.loads((root / TRAIN).read_text())
    change(found)
    (root / TRAIN).write_text(json.dumps(found))
    return root


def first(found: dict[str, Any]) -> dict[str, Any]:
    return found["annotations"][0]


BAD: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda found: found.pop("images"), r"lacks images; instance annotations have the 3 lists"),
    (
        lambda found: [found.pop("annotations"), found.pop("categories")],
        "lacks annotations, categories; instance",
    ),
    (
        lambda found: first(found).update(category_id=99),
        r"1 of \d+ annotations have the category_id 99 \(the first\), which is not among the 10 "
        "categories",
    ),
    (
        lambda found: first(found).update(image_id=7),
        r"1 of \d+ annotations have the image_id 7 \(the first\), which is not among the 10 images",
    ),
    (
        lambda found: first(found).update(bbox=[1, 2, 3]),
        r"1 of \d+ annotations have a bbox that is not left, top, width, height; the first is \[1,",
    ),
    (
        lambda found: [item.pop("bbox") for item in found["annotations"][:2]],
        r"2 of \d+ annotations lack a key, the first bbox",
    ),
    (
        lambda found: found["images"][1].update(id=100),
        "1 of 10 images have an id that another one has",
    ),
    (
        lambda found: found["images"].append({**found["images"][0], "id": 1, "file_name": "x.jpg"}),
        r"train2017 lacks 1 of the 11 images in .*json; the first is x.jpg",
    ),
    (
        lambda found: [found["images"].clear(), found["annotations"].clear()],
        "lists 0 images; at least 1 is needed",
    ),
    (
        lambda found: found["annotations"].clear(),
        "none of 10 training images has an object of a pixel or more that is no crowd",
    ),
    (
        lambda found: found["categories"].append({"id": 50, "name": "fifty"}),
        r"have 11 categories and the test annotations 10; fifty \(id 50\) is in only one of them",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_contradicting_annotations_are_refused(
    coco_root: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    sentence: str,
) -> None:
    root = changed(coco_root, tmp_path, change)
    with pytest.raises(DataError, match=sentence) as caught:
        load_coco(CocoSpec(root, canvas=64, resize=RULE))
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(coco_root: Path, tmp_path: Path) -> None:
    spec = CocoSpec(coco_root, canvas=64, resize=RULE)
    nowhere = tmp_path / "nowhere"
    for places, sentence in (
        (CocoPlaces(train_annotations="a.json"), f"there is no annotation file {coco_root}/a.json"),
        (CocoPlaces(test_images="val"), f"there is no folder {coco_root}/val; it should hold"),
    ):
        with pytest.raises(DataError, match=re.escape(sentence)):
            load_coco(replace(spec, places=places))
    with pytest.raises(DataError, match=f"there is no folder {nowhere} with COCO's annotations"):
        load_coco(replace(spec, root=nowhere))


def test_what_is_no_json_is_refused(coco_root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(DataError, match=r"broken\.json is no JSON: Expecting value: line 1"):
        read_coco(broken, coco_root / "train2017")
    broken.write_text("[]")
    with pytest.raises(DataError, match="lacks images, annotations, categories"):
        read_coco(broken, coco_root / "train2017")


def test_other_counts_than_expected_are_refused(coco_root: Path) -> None:
    spec = CocoSpec(coco_root, canvas=64, resize=RULE, expected=(80, 118287, 5000))
    with pytest.raises(DataError, match="has 10 categories, but 80 were expected"):
        load_coco(spec)
    with pytest.raises(DataError, match="has 6 test images, but 5000 were expected"):
        load_coco(replace(spec, expected=(10, 10, 5000)))


def test_damaged_images_are_named(coco_root: Path, tmp_path: Path) -> None:
    root = changed(coco_root, tmp_path, lambda found: None)
    folder = root / "train2017"
    Image.new("RGB", (30, 20)).save(folder / "000.jpg")
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    split = read_coco(root / TRAIN, folder)
    with pytest.raises(
        DataError,
        match=r"000\.jpg is 20 pixels high and 30 wide, but its annotation says 40 and 48",
    ):
        split[0]
    with pytest.raises(DataError, match=r"001\.png cannot be decoded as an image"):
        split[1]
    assert isinstance(split[2][0], torch.Tensor)


def test_a_mask_of_another_size_is_named(coco_root: Path, tmp_path: Path) -> None:
    wrong = {"size": [3, 3], "counts": [9]}
    root = changed(coco_root, tmp_path, lambda found: first(found).update(segmentation=wrong))
    with pytest.raises(
        DataError, match=r"annotation 0 of image 100 cannot be read: a segmentation has the size"
    ):
        read_coco(root / TRAIN, root / "train2017").objects(0)


def test_a_canvas_below_the_long_side_is_refused(coco_root: Path) -> None:
    with pytest.raises(ValueError, match="long side of 1333 pixels does not fit on a canvas of 64"):
        load_coco(CocoSpec(coco_root, canvas=64))
