"""Images in tar archives: ImageNet as it is distributed, and shards."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from triptych.data import DataError, ImageSource, ImageSpec, SampleKey, load_images
from triptych.data.archive_layouts import DEVKIT, META, SYNSETS, TRAIN, TRUTH, VAL, scan_archives
from triptych.data.archives import archive_index

SYNSET_NAMES = ("n03", "n01", "n02")
# The devkit's own numbers of the classes, in another order than the alphabet's.
NUMBERS = {"n01": 3, "n02": 1, "n03": 2}
VAL_SYNSETS = ("n02", "n03", "n02", "n01")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes], mode: str = "w") -> bytes:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def write_imagenet(root: Path, *, devkit: str = "list") -> None:
    root.mkdir(parents=True, exist_ok=True)
    inner = {}
    for label, name in enumerate(SYNSET_NAMES):
        files = {f"{name}_{i}.JPEG": jpeg(10 * label + i) for i in (2, 0, 1)}
        inner[f"{name}.tar"] = pack(root / "inner.tar", files)
    (root / "inner.tar").unlink()
    pack(root / TRAIN, inner)
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5)]
    pack(root / VAL, {names[i]: jpeg(100 + i) for i in (3, 1, 0, 2)})
    if devkit == "list":
        (root / SYNSETS).write_text("\n".join(VAL_SYNSETS) + "\n")
        return
    truth = "".join(f"{NUMBERS[name]}\n" for name in VAL_SYNSETS).encode()
    table = np.zeros(3, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for row, (name, number) in zip(table, NUMBERS.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"] = number, name
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    files = {f"{DEVKIT}/data/{TRUTH}": truth, f"{DEVKIT}/data/{META}": buffer.getvalue()}
    if devkit == "archive":
        pack(root / f"{DEVKIT}.tar.gz", files, "w:gz")
        return
    (root / DEVKIT / "data").mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)


def spec(root: Path, **options: object) -> ImageSpec:
    return ImageSpec(ImageSource.image_archive, 32, channels=3, root=root, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("devkit", ["list", "folder", "archive"])
def test_archives_give_what_folders_give(tmp_path: Path, devkit: str) -> None:
    root, folder = tmp_path / "tars", tmp_path / "folders"
    write_imagenet(root, devkit=devkit)
    for label, name in enumerate(SYNSET_NAMES):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "val" / name).mkdir(parents=True)
        for i in range(3):
            (folder / "train" / name / f"{name}_{i}.JPEG").write_bytes(jpeg(10 * label + i))
    for i, name in enumerate(VAL_SYNSETS):
        (folder / "val" / name / f"ILSVRC2012_val_{i + 1:08}.JPEG").write_bytes(jpeg(100 + i))
    tars = load_images(spec(root), seed=3)
    plain = load_images(ImageSpec(ImageSource.image_folder, 32, channels=3, root=folder), seed=3)
    assert tars.class_names == plain.class_names == ("n01", "n02", "n03")
    keys = [SampleKey(1, index) for index in range(9)]
    ours, theirs = tars.train.__getitems__(keys), plain.train.__getitems__(keys)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    assert tars.test.labels.tolist() == [NUMBER - 1 for NUMBER in (2, 3, 2, 1)]
    assert sorted(plain.test.labels.tolist()) == sorted(tars.test.labels.tolist())
    first = tars.test.__getitems__([SampleKey(0, 3)]).images  # of n01, the only one
    assert torch.equal(first, plain.test.__getitems__([SampleKey(0, 0)]).images)


def test_the_index_is_made_once(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    first = archive_index(tmp_path / TRAIN)
    stored = tmp_path / f"{TRAIN}.index.npz"
    made = stored.stat().st_mtime_ns
    again = archive_index(tmp_path / TRAIN)
    assert stored.stat().st_mtime_ns == made
    assert [first.member(i) for i in range(9)] == [again.member(i) for i in range(9)]
    os.utime(tmp_path / TRAIN, ns=(1, 1))  # another archive of the same name
    archive_index(tmp_path / TRAIN)
    assert stored.stat().st_mtime_ns != made


def test_the_index_goes_to_the_cache_where_the_folder_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("triptych.data.archives.os.access", lambda *_: False)
    archive_index(tmp_path / "data" / TRAIN)
    assert not (tmp_path / "data" / f"{TRAIN}.index.npz").exists()
    assert len(list((tmp_path / "cache" / "triptych").glob(f"{TRAIN}-*.npz"))) == 1


def write_shards(root: Path, *, labels: bool = True) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 3), ("val", 1)):
        for shard in range(count):
            files: dict[str, bytes] = {}
            for i in range(4):
                key = f"{shard}{i}"
                files[f"{key}.jpg"] = jpeg(100 * shard + i)
                if labels:
                    files[f"{key}.cls"] = str((shard + i) % 3).encode()
            pack(root / f"{part}-{shard:06}.tar", files)


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    data = load_images(spec(tmp_path, expected=(3, 12, 4)), seed=0)
    assert (len(data.train), len(data.test), data.class_names) == (12, 4, ("0", "1", "2"))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    train, _ = scan_archives(tmp_path)
    assert train.class_names == ("cat", "dog", "owl")
    member = train.paths[5]
    assert str(member) == f"11.jpg in {tmp_path}/train-000001.tar"
    assert member.read() == jpeg(101)  # type: ignore[union-attr]


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as refusal:
        load_images(spec(root, **options), seed=0)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path} holds neither {TRAIN} and {VAL} nor shards: expected at least 1 file "
        "train*.tar, found 0"
    )
    write_imagenet(tmp_path / "a")
    (tmp_path / "a" / SYNSETS).unlink()
    assert refused(tmp_path / "a").startswith(f"{tmp_path / 'a'} has no labels for {VAL}: expected")
    write_shards(tmp_path / "b", labels=False)
    assert re.search(r"holds 4 images but 0 labels: 00.jpg has no .cls", refused(tmp_path / "b"))


def test_wrong_counts_are_told(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    assert refused(tmp_path, expected=(1000, None, None)) == (
        f"{tmp_path} has 3 classes, but 1000 were expected"
    )
    assert refused(tmp_path, expected=(3, 10, 4)) == (
        f"{tmp_path} has 9 training images, but 10 were expected"
    )
    (tmp_path / SYNSETS).write_text("n01\nn02\n")
    assert refused(tmp_path) == (
        f"{tmp_path / VAL} holds 4 images, but there are 2 labels for them"
    )
    (tmp_path / SYNSETS).write_text("n01\nn02\nn03\nn09\n")
    assert "a label of" in refused(tmp_path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    whole = (tmp_path / TRAIN).read_bytes()
    (tmp_path / TRAIN).write_bytes(whole[: len(whole) // 2])
    message = refused(tmp_path)
    assert "is truncated" in message or "cannot be read as a tar archive" in message
    assert re.search(r"[\d,]+", message)
