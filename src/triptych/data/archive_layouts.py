"""Training and test images in archives: ImageNet as it is distributed, and shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triptych.data.archives import NO_LABEL, ArchiveIndex, Members, archive_index
from triptych.data.errors import DataError
from triptych.data.folders import ImageFiles

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def scan_archives(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Training and test images of the archives in ``root``.

    ImageNet's classes are its synsets in alphabetical order, as with folders.

    Raises:
        DataError: an archive or a list of labels is missing or damaged, or counts do not agree.
    """
    if (root / TRAIN).exists() or (root / VAL).exists():
        return _imagenet(root)
    shards = {part: sorted(root.glob(f"{part}*.tar")) for part in ("train", "val")}
    missing = [part for part, found in shards.items() if not found]
    if missing:
        raise DataError(
            f"{root} holds neither {TRAIN} and {VAL} nor shards: expected at least 1 file "
            f"{missing[0]}*.tar, found 0"
        )
    names = _class_names(root)
    train, val = (_shards(found, names) for found in shards.values())
    classes = names or tuple(map(str, range(1 + max(*train.labels, *val.labels))))
    return _named(train, classes), _named(val, classes)


def _named(files: ImageFiles, class_names: tuple[str, ...]) -> ImageFiles:
    return ImageFiles(files.paths, files.labels, class_names)


def _imagenet(root: Path) -> tuple[ImageFiles, ImageFiles]:
    train = archive_index(root / TRAIN)
    if not train.group_names:
        raise DataError(
            f"{train.archive} holds {len(train)} images but no inner archives; expected one tar "
            "file for each class"
        )
    class_names = tuple(sorted(train.group_names))
    if len(set(class_names)) < len(class_names):
        raise DataError(f"{train.archive} holds two archives of the same class")
    number = {name: label for label, name in enumerate(class_names)}
    of_group = np.array([number[name] for name in train.group_names])
    empty = sorted(set(range(len(class_names))) - set(of_group[train.groups].tolist()))
    if empty:
        raise DataError(f"{class_names[empty[0]]}.tar in {train.archive} holds no images")
    labels = of_group[train.groups]
    order = np.lexsort((train.names, labels))
    return (
        ImageFiles(Members([train], _places(0, order)), tuple(labels[order].tolist()), class_names),
        _validation(root, number, class_names),
    )


def _places(archive: int, order: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(order), archive), order], axis=1)


def _validation(root: Path, number: dict[str, int], class_names: tuple[str, ...]) -> ImageFiles:
    val = archive_index(root / VAL)
    synsets = _validation_synsets(root)
    if len(synsets) != len(val):
        raise DataError(
            f"{val.archive} holds {len(val)} images, but there are {len(synsets)} labels for them"
        )
    unknown = sorted(set(synsets) - set(number))
    if unknown:
        raise DataError(
            f"a label of {val.archive} is {unknown[0]}, which is none of the {len(number)} "
            f"archives in {TRAIN}"
        )
    order = np.argsort(val.names, kind="stable")
    labels = tuple(number[name] for name in synsets)
    return ImageFiles(Members([val], _places(0, order)), labels, class_names)


def _validation_synsets(root: Path) -> list[str]:
    """The synset of each validation image, in the order of their names."""
    listed = root / SYNSETS
    if listed.is_file():
        return listed.read_text().split()
    if (root / DEVKIT / "data").is_dir():
        truth, meta = ((root / DEVKIT / "data" / name).read_bytes() for name in (TRUTH, META))
    elif (root / f"{DEVKIT}.tar.gz").is_file():
        truth, meta = _from_devkit(root / f"{DEVKIT}.tar.gz")
    else:
        raise DataError(
            f"{root} has no labels for {VAL}: expected {DEVKIT}.tar.gz, a folder {DEVKIT} or "
            f"{SYNSETS}"
        )
    synset = _synsets_by_number(meta)
    return [synset[int(line)] for line in truth.split()]


def _from_devkit(path: Path) -> tuple[bytes, bytes]:
    found = []
    with tarfile.open(path) as devkit:
        for name in (TRUTH, META):
            stream = devkit.extractfile(f"{DEVKIT}/data/{name}")
            assert stream is not None
            found.append(stream.read())
    return found[0], found[1]


def _synsets_by_number(meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    table = loadmat(io.BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(table)}


def _class_names(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    return tuple(path.read_text().splitlines()) if path.is_file() else ()


def _shards(paths: Sequence[Path], class_names: tuple[str, ...]) -> ImageFiles:
    indices: list[ArchiveIndex] = [archive_index(path) for path in paths]
    for index in indices:
        bare = np.flatnonzero(index.labels == NO_LABEL)
        if len(bare):
            raise DataError(
                f"{index.archive} holds {len(index)} images but {len(index) - len(bare)} labels: "
                f"{index.member(int(bare[0])).name} has no .cls beside it"
            )
    labels = np.concatenate([index.labels for index in indices])
    if class_names and labels.max() >= len(class_names):
        raise DataError(
            f"{paths[0].parent} has the label {labels.max()}, but classes.txt names "
            f"{len(class_names)} classes; expected labels from 0 to {len(class_names) - 1}"
        )
    order = [_places(which, np.arange(len(index))) for which, index in enumerate(indices)]
    return ImageFiles(Members(indices, np.concatenate(order)), tuple(labels.tolist()), class_names)
