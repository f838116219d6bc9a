"""Detector batches: normalised canvases that depend on (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import SampleKey, make_loader
from triptych.data.canvas import ResizeRule
from triptych.data.detection import DetectionData
from triptych.data.detection_samples import DetectionBatch, DetectionSamples
from triptych.data.detection_sources import CocoSpec, load_coco
from triptych.data.loading import ResumableLoader

SIDES = (24, 32, 40)


@pytest.fixture(scope="module")
def data(coco_root: Path) -> DetectionData:
    return load_coco(CocoSpec(coco_root, canvas=64, resize=ResizeRule(32, 60, SIDES)))


def same(a: Iterable[DetectionBatch], b: Iterable[DetectionBatch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return bool(pairs) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.indices, y.indices)
        and all(
            s.keys() == t.keys() and all(torch.equal(s[key], t[key]) for key in s)
            for s, t in zip(x.targets, y.targets, strict=True)
        )
        for x, y in pairs
    )


def loader(data: DetectionData, workers: int = 0, pieces: int = 1) -> ResumableLoader:
    samples = DetectionSamples(data, training=True, seed=3)
    return make_loader(
        samples,
        batch_size=4,
        seed=5,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pieces=pieces,
    )


@given(st.integers(0, 40), st.integers(0, 7), st.integers(0, 2**40))
def test_a_sample_is_a_function_of_seed_epoch_and_index(
    data: DetectionData, epoch: int, index: int, seed: int
) -> None:
    key = SampleKey(epoch, index)
    alone = DetectionSamples(data, training=True, seed=seed)[key]
    state = torch.get_rng_state()
    again = DetectionSamples(data, training=True, seed=seed)
    among = again.__getitems__([SampleKey(epoch, (index + 1) % 8), key])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(alone.images[0], among.images[1])
    assert torch.equal(alone.targets[0]["masks"], among.targets[1]["masks"])


def test_sizes_and_flips_vary_over_epochs(data: DetectionData) -> None:
    samples = DetectionSamples(data, training=True, seed=0)
    _, width = data.train.size(0)  # 40 by 48
    seen = set()
    for epoch in range(40):
        batch = samples[SampleKey(epoch, 0)]
        boxes, former = batch.targets[0]["boxes"], data.train.objects(0).boxes
        side = round(40 * float((boxes[0, 3] - boxes[0, 1]) / (former[0, 3] - former[0, 1])))
        flipped = float(boxes[0, 0]) != pytest.approx(float(former[0, 0]) * side / 40, abs=0.6)
        seen.add((side, flipped))
        laid = batch.images[0].abs().sum(0) > 0
        assert laid.any(1).nonzero().max() == side - 1
        assert laid.any(0).nonzero().max() == int(width * side / 40 + 0.5) - 1
    assert seen == {(side, flipped) for side in SIDES for flipped in (False, True)}


def test_other_seeds_draw_otherwise(data: DetectionData) -> None:
    keys = [SampleKey(0, index) for index in range(8)]
    batches = [DetectionSamples(data, training=True, seed=s).__getitems__(keys) for s in (0, 1)]
    assert not torch.equal(batches[0].images, batches[1].images)


def test_test_images_are_plain_and_normalised(data: DetectionData) -> None:
    square = replace(data, resize=ResizeRule(64, 80), canvas=(80, 80))
    batch = DetectionSamples(square, training=False, seed=9)[SampleKey(7, 2)]
    image, objects = data.test[2]
    assert image.shape == (3, 64, 72)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    assert torch.allclose(batch.images[0, :, :64, :72], (image / 255 - mean) / std)
    assert batch.images[0, :, 64:].abs().sum() == batch.images[0, :, :, 72:].abs().sum() == 0
    assert torch.equal(batch.targets[0]["boxes"], objects.boxes)
    assert torch.equal(batch.targets[0]["masks"][:, :64, :72], objects.masks)


def test_every_target_lies_on_the_canvas(data: DetectionData) -> None:
    for epoch in range(3):
        for batch in loader(data):
            assert batch.images.shape == (4, 3, 64, 64)
            assert batch.images.dtype == torch.float32
            for target in batch.targets:
                boxes = target["boxes"]
                assert bool((boxes[:, :2] < boxes[:, 2:]).all())
                assert 0 <= float(boxes.min()) <= float(boxes.max()) <= 60.001
                assert target["masks"].shape == (len(boxes), 64, 64)
                assert int(target["labels"].min()) >= 1
        assert epoch < 3


def test_images_without_objects_are_tested_on(coco_root: Path) -> None:
    from triptych.data.coco import CocoPlaces

    train = "annotations/instances_train2017.json"
    places = CocoPlaces(train, "train2017", train, "train2017")
    data = load_coco(CocoSpec(coco_root, canvas=64, resize=ResizeRule(32, 60), places=places))
    batch = DetectionSamples(data, training=False).__getitems__([SampleKey(0, i) for i in range(5)])
    assert batch.targets[3]["boxes"].shape == batch.targets[4]["boxes"].shape == (0, 4)
    assert batch.targets[3]["masks"].shape == (0, 64, 64)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_loader_goes_on_to_the_bit(data: DetectionData, stop: int) -> None:
    whole = loader(data)
    expected = [batch for _ in range(3) for batch in whole]
    assert len(expected) == 6
    first = loader(data)
    seen = []
    while len(seen) < stop:
        for batch in first:
            seen.append(batch)
            if len(seen) == stop:
                break
    second = loader(data)
    second.load_state_dict(first.state_dict())
    rest = []
    while len(rest) < 6 - stop:
        rest += list(second)
    assert same([*seen, *rest], expected)


def test_batches_are_the_same_with_workers_and_in_pieces(data: DetectionData) -> None:
    plain = list(loader(data))
    assert same(loader(data, workers=2), plain)
    pieces = list(loader(data, pieces=2))
    assert len(pieces) == 2 * len(plain)
    together = torch.cat([piece.images for piece in pieces])
    assert torch.equal(together, torch.cat([batch.images for batch in plain]))
