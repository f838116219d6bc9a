"""Images read from tar archives where they lie, through an index of their offsets.

Two forms are known: ImageNet's own archives (ILSVRC 2012: one tar file of a tar file for each
class, one of validation images) and shards in the form of WebDataset (``key.jpg`` beside
``key.cls``). An index is made once, in one pass over the headers, and kept beside its archive or,
where that folder cannot be written, in ~/.cache/triptych; it belongs to the size and the time of
the archive.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np

from triptych.data.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LABEL_ENDING = ".cls"
NO_LABEL = -1


@dataclass(frozen=True)
class Member:
    """An image inside an archive: ``size`` bytes from ``offset`` on."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"

    def read(self) -> bytes:
        """The bytes of the image.

        Raises:
            DataError: the archive ends before them.
        """
        with self.archive.open("rb") as stream:
            stream.seek(self.offset)
            content = stream.read(self.size)
        if len(content) != self.size:
            raise DataError(
                f"{self} is truncated: expected {self.size} bytes, found {len(content)}"
            )
        return content


@dataclass(frozen=True)
class ArchiveIndex:
    """Where the images of one archive lie, in its own order.

    ``groups`` (N,) counts in ``group_names``, the inner archives (without .tar), and is 0 where
    there are none; ``labels`` (N,) are those that lie beside the images, or −1.
    """

    archive: Path
    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    group_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def member(self, place: int) -> Member:
        """The image at ``place``."""
        name = self.names[place].decode()
        return Member(self.archive, name, int(self.offsets[place]), int(self.sizes[place]))


class Members(Sequence[Member]):
    """Images of several archives in a given order, made when they are asked for.

    ``order`` (N, 2): index of the archive, and place in it.
    """

    def __init__(self, indices: Sequence[ArchiveIndex], order: np.ndarray) -> None:
        self.indices, self.order = tuple(indices), order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, place: int) -> Member: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Member]: ...
    def __getitem__(self, place: int | slice) -> Member | Sequence[Member]:
        if isinstance(place, slice):
            return Members(self.indices, self.order[place])
        archive, inside = self.order[place]
        return self.indices[archive].member(int(inside))


def archive_index(archive: Path) -> ArchiveIndex:
    """The index of ``archive``, made where there is none that fits.

    Raises:
        DataError: the archive is missing, damaged, truncated or holds no images.
    """
    if not archive.is_file():
        raise DataError(f"there is no archive {archive}")
    stamp = np.array([archive.stat().st_size, archive.stat().st_mtime_ns], dtype=np.int64)
    for path in _index_places(archive):
        if path.is_file():
            with np.load(path) as stored:
                if np.array_equal(stored["stamp"], stamp):
                    return _unpacked(archive, stored)
    index = _scan(archive)
    _store(index, stamp)
    return index


def _index_places(archive: Path) -> tuple[Path, Path]:
    digest = hashlib.blake2b(str(archive.resolve()).encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
    return archive.with_name(f"{archive.name}.index.npz"), cache / f"{archive.name}-{digest}.npz"


def _unpacked(archive: Path, stored: np.lib.npyio.NpzFile) -> ArchiveIndex:
    fields = {name: stored[name] for name in ("names", "offsets", "sizes", "groups", "labels")}
    return ArchiveIndex(archive, **fields, group_names=tuple(map(str, stored["group_names"])))


def _store(index: ArchiveIndex, stamp: np.ndarray) -> None:
    beside, cached = _index_places(index.archive)
    path = beside if os.access(beside.parent, os.W_OK) else cached
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        stamp=stamp,
        names=index.names,
        offsets=index.offsets,
        sizes=index.sizes,
        groups=index.groups,
        labels=index.labels,
        group_names=np.array(index.group_names, dtype=np.str_),
    )
    # Written whole: several processes of a run may make it at once.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(buffer.getvalue())
    unfinished.replace(path)


def _scan(archive: Path) -> ArchiveIndex:
    """One pass over the headers; the images are skipped."""
    rows: list[tuple[str, int, int, int]] = []
    labels: dict[str, int] = {}
    group_names: list[str] = []
    with archive.open("rb") as stream:
        for member in _headers(stream, archive, str(archive)):
            if member.name.endswith(".tar"):
                group_names.append(Path(member.name).stem)
                inner = _Window(stream, member.offset_data, member.size)
                where = f"{member.name} in {archive}"
                for image in _headers(inner, archive, where):
                    if image.name.lower().endswith(IMAGE_ENDINGS):
                        start = member.offset_data + image.offset_data
                        rows.append((image.name, start, image.size, len(group_names) - 1))
            elif member.name.endswith(LABEL_ENDING):
                labels[member.name.removesuffix(LABEL_ENDING)] = _label(stream, member, archive)
            elif member.name.lower().endswith(IMAGE_ENDINGS):
                rows.append((member.name, member.offset_data, member.size, 0))
    if not rows:
        raise DataError(
            f"{archive} holds no images; expected at least 1 ending in {', '.join(IMAGE_ENDINGS)}"
        )
    names, offsets, sizes, groups = zip(*rows, strict=True)
    beside = [labels.get(os.path.splitext(name)[0], NO_LABEL) for name in names]
    return ArchiveIndex(
        archive,
        np.array([name.encode() for name in names]),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(groups, dtype=np.int32),
        np.array(beside, dtype=np.int64),
        tuple(group_names),
    )


def _headers(stream: IO[bytes] | _Window, archive: Path, where: str) -> Iterator[tarfile.TarInfo]:
    length = archive.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                base = stream.start if isinstance(stream, _Window) else 0
                end = base + member.offset_data + member.size
                if end > length:
                    raise DataError(
                        f"{where} is truncated: {member.name} should end at byte {end:,}, but "
                        f"{archive.name} has {length:,}"
                    )
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise DataError(f"{where} cannot be read as a tar archive: {error}") from error


def _label(stream: IO[bytes], member: tarfile.TarInfo, archive: Path) -> int:
    back = stream.tell()
    stream.seek(member.offset_data)
    text = stream.read(member.size).decode(errors="replace").strip()
    stream.seek(back)
    if not text.isdecimal():
        raise DataError(f"{member.name} in {archive} holds {text!r}, not the number of a class")
    return int(text)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self.stream, self.start, self.size = stream, start, size
        self.place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = base + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        count = left if size < 0 else min(size, left)
        back = self.stream.tell()
        self.stream.seek(self.start + self.place)
        content = self.stream.read(count)
        self.stream.seek(back)
        self.place += len(content)
        return content

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
