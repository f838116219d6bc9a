"""IDX files and the folders that hold them."""

import gzip
import re
import struct

import numpy as np
import pytest

from triptych.data import sources
from triptych.data.errors import DataError
from triptych.data.idx import read_idx

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([1, 0], dtype=np.uint8)


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_set(folder, images=IMAGES, labels=LABELS, *, parts=("train", "t10k"), suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for part in parts:
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "DEBIAN_FASHION", tmp_path / "debian")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("array", [IMAGES, LABELS])
def test_read(tmp_path, pack, array):
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(path, array.ndim), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            idx_bytes(LABELS),
            "{path} is not the expected IDX file: its magic number must be 0x00000803, found "
            "0x00000801",
        ),
        (
            b"",
            "{path} is not the expected IDX file: its magic number must be 0x00000803, found 0x",
        ),
        (
            idx_bytes(IMAGES)[:10],
            "{path} is truncated: its header must have 16 bytes, found 10",
        ),
        (
            idx_bytes(IMAGES)[:-1],
            "{path} is damaged: a header of 2x3x4 means 24 bytes of data, found 23",
        ),
        (
            idx_bytes(IMAGES) + b"x",
            "{path} is damaged: a header of 2x3x4 means 24 bytes of data, found 25",
        ),
        (
            gzip.compress(idx_bytes(IMAGES), mtime=0)[:-9],
            "{path} is a damaged gzip file (Compressed file ended before the end-of-stream marker "
            "was reached)",
        ),
    ],
)
def test_damaged(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(message.format(path=path))}$"):
        read_idx(path, 3)


def test_damaged_inside_gzip(tmp_path):
    path = tmp_path / "file.gz"
    content = bytearray(gzip.compress(np.random.default_rng(0).bytes(2000), mtime=0))
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} is a damaged gzip file"):
        read_idx(path, 3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["root", "root/FashionMNIST/raw", "debian"])
def test_places(tmp_path, place, suffix):
    write_set(tmp_path / place, suffix=suffix)
    root = None if place == "debian" else tmp_path / "root"
    train, test = sources.fashion_mnist(root, download=False)
    for part in (train, test):
        np.testing.assert_array_equal(part.images[:, 0].numpy(), IMAGES)
        assert part.labels.tolist() == [1, 0]


def test_incomplete_folder_is_passed_over(tmp_path):
    write_set(tmp_path / "root", images=IMAGES + 1, parts=("train",))
    write_set(tmp_path / "root" / "FashionMNIST" / "raw")
    write_set(tmp_path / "debian", images=IMAGES + 2)
    train, _ = sources.fashion_mnist(tmp_path / "root", download=False)
    np.testing.assert_array_equal(train.images[:, 0].numpy(), IMAGES)


@pytest.mark.parametrize("with_root", [True, False])
def test_nowhere(tmp_path, with_root):
    root = tmp_path / "root" if with_root else None
    places = [tmp_path / "debian"]
    if root is not None:
        # A root that was named is taken at its word: nothing else is used in its place.
        write_set(tmp_path / "debian")
        places = [root, root / "FashionMNIST" / "raw"]
    message = (
        f"Fashion-MNIST is not in {', '.join(map(str, places))}; install the Debian package "
        f"dataset-fashion-mnist, or set data.download=true"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sources.fashion_mnist(root, download=False)


def test_download_that_fails(tmp_path, monkeypatch):
    def refuse(root, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    message = (
        f"Fashion-MNIST could not be downloaded to {tmp_path}: Error downloading "
        f"train-images-idx3-ubyte.gz"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sources.fashion_mnist(tmp_path, download=True)


def test_count_mismatch(tmp_path):
    write_set(tmp_path, labels=np.zeros(3, dtype=np.uint8))
    message = f"{tmp_path} has 2 images but 3 labels in its train files"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sources.fashion_mnist(tmp_path, download=False)


def test_label_out_of_range(tmp_path):
    write_set(tmp_path, labels=np.array([0, 10], dtype=np.uint8))
    message = f"{tmp_path}/train-labels-idx1-ubyte has the label 10; expected labels from 0 to 9"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sources.fashion_mnist(tmp_path, download=False)


def test_missing_partner(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    message = f"{tmp_path} lacks t10k-labels-idx1-ubyte (plain or with .gz)"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sources.read_pair(tmp_path, "t10k", 10)
