"""The schema of the group ``data``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from triptych.choices import DataName, SceneItems


@dataclass(frozen=True)
class DataConfig:
    """Images, their split and their augmentation; or token sequences.

    ``min_length`` to ``test_sequences`` belong to ListOps, see
    :class:`triptych.data.listops.ListOpsSpec`; all but ``workers`` and ``root`` of the others
    belong to images. ``expected_…``: refuse image files in other numbers than these.
    ``shuffle_blocks``: read neighbours in blocks of so many, and mix some blocks at a time.
    ``photographs``: names of scikit-image's photographs, or of files in ``root``; all of them (of
    scikit-image's, three) where it is empty. ``data=default`` is what ``task=visualization`` looks
    at where nothing is said, see :func:`triptych.subject.settle`.

    ``short_side`` to ``folders`` belong to ``data=coco``: the sides that images are resized to, by
    the rule of :class:`triptych.data.canvas.ResizeRule` (``training_sides``: short sides that
    training draws from), and the files of annotations and folders of images below ``root``, of
    training and of testing. ``image_size`` is then the side of the canvas.
    """

    name: DataName = MISSING
    image_size: int = 32
    channels: int = 1
    root: str | None = None
    download: bool = False
    train_fraction: float = 1.0
    test_fraction: float = 0.2
    workers: int = 0
    crop_padding: int = 0
    flip: float = 0.0
    random_resized_crop: tuple[float, float] | None = None
    rand_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    synthetic_images: int = 256
    synthetic_classes: int = 10
    scenes: int = 5000
    scene_items: SceneItems = SceneItems.mnist_5k
    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10
    train_sequences: int = 96000
    test_sequences: int = 2000
    expected_classes: int | None = None
    expected_train: int | None = None
    expected_test: int | None = None
    shuffle_blocks: int = 0
    photographs: tuple[str, ...] = ()
    corrupted_root: str | None = None
    short_side: int = 800
    long_side: int = 1333
    training_sides: tuple[int, ...] = ()
    annotations: tuple[str, str] = (
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
    )
    folders: tuple[str, str] = ("train2017", "val2017")
