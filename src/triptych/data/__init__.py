"""Images: where they come from, how they are split, augmented and put into batches.

Which samples a batch holds is a pure function of (seed, epoch, batch), and how an image looks in
it is one of (seed, epoch, index). Neither depends on the number of workers or processes, nor on
what was drawn before, so an interrupted run goes on as if it had not been interrupted.
"""

from triptych.data.augmentation import Augmentation
from triptych.data.errors import DataError
from triptych.data.images import ImageSource, ImageSpec, load_images
from triptych.data.loading import ResumableLoader, SeededBatchSampler, make_loader
from triptych.data.samples import Batch, ImageData, ImageDataset, SampleKey
from triptych.data.splits import SPLIT_SEED, stratified_split, train_fraction
from triptych.seeding import derive_seed

__all__ = [
    "SPLIT_SEED",
    "Augmentation",
    "Batch",
    "DataError",
    "ImageData",
    "ImageDataset",
    "ImageSource",
    "ImageSpec",
    "ResumableLoader",
    "SampleKey",
    "SeededBatchSampler",
    "derive_seed",
    "load_images",
    "make_loader",
    "stratified_split",
    "train_fraction",
]
