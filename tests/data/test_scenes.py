"""Scenes: masks, boxes and COCO form agree with each other and with the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.images import ImageSource, ImageSpec, load_images, scene_items
from triptych.data.memory import RawImages
from triptych.data.scenes import (
    INK,
    SceneSettings,
    coco_annotations,
    compose_scene,
    run_lengths,
)


@pytest.fixture(scope="module")
def items() -> RawImages:
    spec = ImageSpec(ImageSource.scenes, 64)
    return scene_items(spec)[0].take(np.arange(0, 4000, 80))


@given(index=st.integers(0, 10**6), size=st.sampled_from([32, 64, 97]), most=st.integers(2, 5))
def test_a_scene_is_what_it_says(items: RawImages, index: int, size: int, most: int) -> None:
    settings = SceneSettings(size=size, objects=(2, most))
    scene = compose_scene(items, "train", index, settings)
    assert scene.image.shape == (1, size, size)
    assert 2 <= len(scene.classes) <= most
    masks = scene.masks
    assert masks.any((1, 2)).all()  # every object is seen
    assert int(masks.sum(0).max()) == 1  # and no pixel belongs to two
    assert bool((scene.image[0][masks.any(0)] > INK).all())
    assert int(scene.image[0][~masks.any(0)].max()) <= settings.clutter
    for mask, (left, top, right, bottom) in zip(masks, scene.boxes.tolist(), strict=True):
        assert mask[top:bottom, left:right].sum() == mask.sum()
        edges = (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1])
        assert all(bool(edge.any()) for edge in edges)
    longest = [max(right - left, bottom - top) for left, top, right, bottom in scene.boxes.tolist()]
    assert scene.label == scene.classes[0]
    assert longest[0] == max(longest)


def test_a_scene_depends_on_split_and_number_alone(items: RawImages) -> None:
    once, again = (compose_scene(items, "train", 7) for _ in range(2))
    assert torch.equal(once.image, again.image)
    assert torch.equal(once.instances, again.instances)
    assert not torch.equal(once.image, compose_scene(items, "test", 7).image)
    assert not torch.equal(once.image, compose_scene(items, "train", 8).image)


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_run_lengths_give_the_mask_back(values: list[bool]) -> None:
    mask = torch.tensor(values).view(3, 4)
    encoded = run_lengths(mask)
    assert encoded["size"] == [3, 4]
    flat = np.concatenate(
        [np.full(count, number % 2 == 1) for number, count in enumerate(encoded["counts"])]
    )
    np.testing.assert_array_equal(flat.reshape(3, 4, order="F"), mask.numpy())


def test_coco_form_agrees_with_the_scenes(items: RawImages) -> None:
    scenes = [compose_scene(items, "test", index) for index in range(3)]
    names = tuple(map(str, range(10)))
    coco = coco_annotations(scenes, names)
    assert [image["id"] for image in coco["images"]] == [0, 1, 2]
    assert [category["name"] for category in coco["categories"]] == list(names)
    annotations = iter(coco["annotations"])
    for number, scene in enumerate(scenes):
        for mask, label in zip(scene.masks, scene.classes, strict=True):
            found = next(annotations)
            assert found["image_id"] == number
            assert found["category_id"] == label + 1
            assert found["area"] == int(mask.sum()) == sum(found["segmentation"]["counts"][1::2])
            assert found["bbox"][2] > 0 < found["bbox"][3]
    assert len({found["id"] for found in coco["annotations"]}) == len(coco["annotations"])


def test_scenes_are_a_data_set_whose_test_items_are_unseen() -> None:
    spec = ImageSpec(ImageSource.scenes, 32, scenes=30, test_fraction=0.4)
    data = load_images(spec, seed=0)
    assert (len(data.train), len(data.test)) == (18, 12)
    assert data.num_classes == 10
    train, test, _ = scene_items(spec)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in test.images}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objects": (3, 2)}, r"a scene needs 1 to 254 objects, got \(3, 2\)"),
        ({"scale": (0.5, 1.5)}, r"the scale must rise within \(0, 1\]"),
        ({"main": (0.3, 0.5)}, r"main object's scale must rise within \(0, 1\] above the others"),
        ({"size": 8, "scale": (0.2, 0.4)}, "items of 0.2 of 8 pixels are too small"),
    ],
)
def test_bad_settings_are_told(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SceneSettings(**options)


def test_items_that_cannot_be_placed_are_told() -> None:
    empty = RawImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="an item without a pixel brighter than 25"):
        compose_scene(empty, "train", 0)
    coloured = RawImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="got 3 channels"):
        compose_scene(coloured, "train", 0)
