"""Scenes with their objects: the same images as for classification, in COCO's form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triptych.data import Augmentation, DataError, ImageSource, ImageSpec, SampleKey, load_images
from triptych.data.detection import DetectionData
from triptych.data.detection_samples import DetectionSamples
from triptych.data.detection_sources import load_detection_scenes
from triptych.data.images import compose_scenes

SPEC = ImageSpec(ImageSource.scenes, 48, scenes=60, test_fraction=0.3, train_fraction=0.5)


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return load_detection_scenes(SPEC)


def test_images_are_those_of_classification(data: DetectionData) -> None:
    images = load_images(SPEC, seed=0)
    assert (len(data.train), len(data.test)) == (len(images.train), len(images.test)) == (21, 18)
    assert (data.mean, data.std, data.channels) == (images.mean, images.std, 1)
    keys = [SampleKey(0, index) for index in range(18)]
    for training, split in ((True, images.train), (False, images.test)):
        batch = DetectionSamples(data, training=training).__getitems__(keys)
        assert torch.allclose(batch.images, split.__getitems__(keys).images, atol=1e-5)


def test_objects_are_those_of_the_scenes(data: DetectionData) -> None:
    _, scenes, names = compose_scenes(SPEC)
    assert data.class_names == names == tuple("0123456789")
    assert data.category_ids == tuple(range(1, 11))
    assert data.num_classes == 10
    for index, scene in enumerate(scenes):
        image, objects = data.test[index]
        assert torch.equal(image, scene.image)
        assert torch.equal(objects.boxes, scene.boxes.float())
        assert objects.labels.tolist() == [label + 1 for label in scene.classes]
        assert torch.equal(objects.masks, scene.masks)
        assert data.test.size(index) == (48, 48)


def test_targets_are_the_objects_on_the_canvas(data: DetectionData) -> None:
    assert data.canvas == (48, 48)
    batch = DetectionSamples(data, training=False)[SampleKey(0, 4)]
    objects = data.test.objects(4)
    assert batch.images.shape == (1, 1, 48, 48)
    assert batch.indices.tolist() == [4]
    for name in ("boxes", "labels", "masks"):
        assert torch.equal(batch.targets[0][name], getattr(objects, name))
        assert batch.targets[0][name].dtype == getattr(objects, name).dtype


def test_annotations_are_of_these_images_alone(data: DetectionData) -> None:
    found = data.test.annotations
    assert [image["id"] for image in found["images"]] == list(data.test.image_ids)
    assert len(found["annotations"]) == sum(len(data.test.objects(i).labels) for i in range(18))
    assert {item["image_id"] for item in found["annotations"]} <= set(data.test.image_ids)
    assert data.train.dropped == data.test.dropped == 0


def test_masks_are_made_only_where_they_are_asked_for(data: DetectionData) -> None:
    batch = DetectionSamples(data, training=True, masks=False)[SampleKey(0, 1)]
    assert set(batch.targets[0]) == {"boxes", "labels"}
    assert data.train.objects(1, masks=False).masks.shape == (0, 48, 48)


def test_the_flip_is_that_of_the_specification(data: DetectionData) -> None:
    always = load_detection_scenes(replace(SPEC, augmentation=Augmentation(flip=1.0)))
    plain = DetectionSamples(data, training=True)[SampleKey(0, 2)]
    flipped = DetectionSamples(always, training=True)[SampleKey(0, 2)]
    assert torch.equal(flipped.images, plain.images.flip(3))
    assert torch.equal(flipped.targets[0]["masks"], plain.targets[0]["masks"].flip(2))
    boxes, former = flipped.targets[0]["boxes"], plain.targets[0]["boxes"]
    assert torch.equal(boxes[:, [0, 2]], 48 - former[:, [2, 0]])
    assert torch.equal(boxes[:, [1, 3]], former[:, [1, 3]])
    test = DetectionSamples(always, training=False)[SampleKey(0, 2)]
    assert torch.equal(test.targets[0]["masks"], always.test.objects(2).masks)


def test_an_object_without_a_mask_is_refused_where_masks_are_asked_for(
    data: DetectionData,
) -> None:
    bare = [[dict(item) for item in items] for items in data.test.packed]
    del bare[3][1]["segmentation"]
    split = replace(data.test, packed=bare)
    sentence = (
        f"annotation {bare[3][1]['id']} of image 3 has no segmentation; a detector that predicts "
        "masks needs one of every object"
    )
    with pytest.raises(DataError, match=sentence):
        split.objects(3)
    assert len(split[3][1].boxes) == len(bare[3])
    assert split[3][1].masks.shape == (0, 48, 48)
