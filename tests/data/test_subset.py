from __future__ import annotations

import pytest
import torch

from triptych.data.augmentation import Augmentation
from triptych.data.memory import InMemoryImages, RawImages
from triptych.data.samples import SampleKey
from triptych.data.subset import LabelledPart


def whole():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    augmentation = Augmentation(crop_padding=2, flip=0.5)
    return InMemoryImages(
        RawImages(images, labels), mean=[0.5], std=[0.2], augmentation=augmentation, seed=1
    )


def test_it_is_stratified_and_always_the_same():
    part = LabelledPart(whole(), 0.2)
    assert len(part) == 12
    assert part.labels.bincount().tolist() == [4, 4, 4]
    assert part.places.tolist() == LabelledPart(whole(), 0.2).places.tolist()


def test_samples_are_those_of_the_whole_in_their_augmentation():
    data = whole()
    part = LabelledPart(data, 0.2)
    batch = part.__getitems__([SampleKey(3, index) for index in range(12)])
    same = data.__getitems__([SampleKey(3, int(place)) for place in part.places])
    for ours, theirs in zip(batch, same, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(batch.labels, part.labels)


def test_too_few_for_a_class():
    with pytest.raises(ValueError, match=r"^a training fraction of 0\.01 leaves 1 of 60 samples"):
        LabelledPart(whole(), 0.01)
