"""A stratified part of a data set, for tasks that see only some of the labels."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.data.splits import train_fraction


class LabelledPart(ImageDataset):
    """A stratified ``fraction`` of ``whole``, the same in every run; one or more of each class.

    A sample keeps the index, and so the augmentation, that it has in the whole.

    Raises:
        ValueError: the fraction is out of range, or too small for one sample of each class.
    """

    def __init__(self, whole: ImageDataset, fraction: float) -> None:
        self.whole = whole
        self.places = train_fraction(whole.labels.numpy(), fraction)
        self.labels = whole.labels[self.places]

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        return self.whole.__getitems__(
            [SampleKey(epoch, int(self.places[index])) for epoch, index in keys]
        )
