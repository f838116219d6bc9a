"""IDX files, the format of MNIST and Fashion-MNIST: plain or gzipped.

Layout: two zero bytes, a type byte (8 = unsigned byte), the number of dimensions, one big-endian
uint32 for each dimension, then the values.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.data.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file with that many ``dimensions``.

    Raises:
        DataError: the file is not gzip or IDX as expected, or holds another number of bytes than
            its header says.
    """
    content = _read(path)
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise DataError(
            f"{path} is not the expected IDX file: its magic number must be 0x{magic.hex()}, "
            f"found 0x{content[:4].hex()}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(
            f"{path} is truncated: its header must have {start} bytes, found {len(content)}"
        )
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected, found = int(np.prod(shape, dtype=np.int64)), len(content) - start
    if expected != found:
        raise DataError(
            f"{path} is damaged: a header of {'x'.join(map(str, shape))} means {expected} bytes "
            f"of data, found {found}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != _GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error})") from error
