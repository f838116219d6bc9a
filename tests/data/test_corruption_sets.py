"""Corrupted test sets, made when asked for or kept; and the published ones in their folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.choices import Corruption
from triptych.data.corruptions import dataset
from triptych.data.corruptions.dataset import (
    CorruptedImages,
    CorruptionCache,
    as_bytes,
    normalised,
)
from triptych.data.errors import DataError
from triptych.data.imagenet_c import ImageNetC, UnresizedImages, scan_imagenet_c
from triptych.data.memory import InMemoryImages, RawImages
from triptych.data.samples import ImageDataset, SampleKey
from triptych.data.subset import LabelledPart

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
C = Corruption


def images(count: int = 12, channels: int = 3) -> InMemoryImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 16, 16), generator=generator)
    raw = RawImages(pixels.to(torch.uint8), torch.arange(count) % 3)
    return InMemoryImages(raw, mean=MEAN[:channels], std=STD[:channels])


def keys(*indices: int) -> list[SampleKey]:
    return [SampleKey(0, index) for index in indices]


def corrupted(
    whole: ImageDataset, name: Corruption = C.shot_noise, severity: int = 3
) -> CorruptedImages:
    return CorruptedImages(whole, name, severity, mean=MEAN, std=STD)


def test_bytes_come_back_whole() -> None:
    whole = images()
    assert torch.equal(
        as_bytes(whole.__getitems__(keys(*range(12))).images, MEAN, STD), whole.images
    )
    again = normalised(whole.images, MEAN, STD)
    assert torch.allclose(again, whole.__getitems__(keys(*range(12))).images, atol=1e-6)


def test_an_image_is_corrupted_the_same_in_every_batch_and_epoch() -> None:
    data = corrupted(images())
    batch = data.__getitems__(keys(4, 1, 7))
    alone = data.__getitems__([SampleKey(5, 1)])
    assert torch.equal(batch.images[1], alone.images[0])
    assert batch.indices.tolist() == [4, 1, 7]
    assert batch.labels.tolist() == [1, 1, 1]
    assert not torch.equal(batch.images[0], images().__getitems__(keys(4)).images[0])


def test_equal_images_are_corrupted_in_their_own_ways() -> None:
    raw = RawImages(torch.full((2, 3, 16, 16), 128, dtype=torch.uint8), torch.zeros(2).long())
    data = corrupted(InMemoryImages(raw, mean=MEAN, std=STD))
    first, second = data.__getitems__(keys(0, 1)).images
    assert not torch.equal(first, second)


def test_a_part_is_corrupted_as_in_the_whole() -> None:
    whole = images()
    part = LabelledPart(whole, 0.5)
    ours = corrupted(part).__getitems__(keys(0, 1)).images
    theirs = corrupted(whole).__getitems__(keys(*part.places[:2].tolist())).images
    assert torch.equal(ours, theirs)


def test_kept_sets_are_those_that_are_made(tmp_path: Path) -> None:
    whole = images()
    cache = CorruptionCache(tmp_path, whole, mean=MEAN, std=STD)
    first = cache.images_of(C.snow, 2)
    path = next(tmp_path.glob("corrupted-*/snow-2.npy"))
    stamp = path.stat().st_mtime_ns
    again = CorruptionCache(tmp_path, whole, mean=MEAN, std=STD).images_of(C.snow, 2)
    assert path.stat().st_mtime_ns == stamp
    live = corrupted(whole, C.snow, 2)
    for data in (first, again, live):
        assert torch.allclose(data.__getitems__(keys(*range(12))).images,
                              live.__getitems__(keys(*range(12))).images, atol=1e-6)  # fmt: skip
        assert torch.equal(data.labels, whole.labels)
    assert [item.name for item in path.parent.iterdir()] == ["snow-2.npy"]


def test_other_pixels_have_a_cache_of_their_own(tmp_path: Path) -> None:
    first = CorruptionCache(tmp_path, images(), mean=MEAN, std=STD)
    second = CorruptionCache(tmp_path, LabelledPart(images(), 0.5), mean=MEAN, std=STD)
    assert first.folder != second.folder


def test_large_sets_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "LARGEST_KEPT", 100)
    cache = CorruptionCache(tmp_path, images(), mean=MEAN, std=STD)
    assert isinstance(cache.images_of(C.fog, 1), CorruptedImages)
    assert not list(tmp_path.iterdir())


def imagenet_c(root: Path, names: list[str], classes: tuple[str, ...] = ("n1", "n2")) -> Path:
    for name in names:
        for label in classes:
            folder = root / name / label
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return root


WANTED = [(C.fog, 1), (C.fog, 2), (C.snow, 1)]


def scan(root: Path) -> ImageNetC:
    return scan_imagenet_c(root, ("n1", "n2"), (2, 2), WANTED)


def test_whole_sets_are_read_as_they_are(tmp_path: Path) -> None:
    found = scan(imagenet_c(tmp_path, ["fog/1", "fog/2", "snow/1"]))
    assert list(found.sets) == WANTED
    assert found.incomplete == ()
    data = UnresizedImages(found.sets[C.fog, 1], 24, mean=MEAN, std=STD)
    batch = data.__getitems__(keys(0, 3))
    assert batch.labels.tolist() == [0, 1]
    with Image.open(str(found.sets[C.fog, 1].paths[3])) as image:
        want = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(as_bytes(batch.images, MEAN, STD)[1], want)


def test_what_is_incomplete_is_listed(tmp_path: Path) -> None:
    imagenet_c(tmp_path, ["fog/1"])
    imagenet_c(tmp_path, ["snow/1"], ("n1",))
    found = scan(tmp_path)
    assert list(found.sets) == [(C.fog, 1)]
    assert found.incomplete == ("fog/2 is missing", "snow/1 has 1 of 2 classes (no n2)")
    (tmp_path / "fog" / "1" / "n2" / "0.JPEG").unlink()
    imagenet_c(tmp_path, ["fog/2"])
    assert scan(tmp_path).incomplete[0] == "fog/1 has 1 of 2 images of class n2"


def test_sentences_of_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError) as failure:
        scan(tmp_path / "none")
    assert str(failure.value) == (
        f"there is no folder {tmp_path}/none with ImageNet-C's folders "
        "<corruption>/<severity>/<class>"
    )
    with pytest.raises(DataError) as failure:
        scan(tmp_path)
    assert str(failure.value) == (
        f"{tmp_path} holds none of the 3 sets whole: fog/1 is missing; fog/2 is missing; snow/1 "
        "is missing"
    )
    imagenet_c(tmp_path, ["fog/1"], ("n1", "n2", "n3"))
    with pytest.raises(DataError) as failure:
        scan(tmp_path)
    assert str(failure.value) == (
        f"{tmp_path}/fog/1 has a folder n3, which is none of the 2 classes of the validation set"
    )


def test_nothing_is_resized(tmp_path: Path) -> None:
    found = scan(imagenet_c(tmp_path, ["fog/1"]))
    data = UnresizedImages(found.sets[C.fog, 1], 32, mean=MEAN, std=STD)
    with pytest.raises(DataError) as failure:
        data.__getitems__(keys(0))
    assert str(failure.value) == (
        f"{tmp_path}/fog/1/n1/0.JPEG has 24x24 pixels, but data.image_size=32; images of "
        "ImageNet-C are not resized, so both must be the same"
    )
