"""Many small Python objects as one array of bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np


class Packed(Sequence[Any]):
    """A fixed sequence of plain objects, each unpacked when it is asked for.

    A worker that is forked from a process shares its memory until something is written there, and
    CPython writes a count into every object that is looked at: a list of a million annotations
    would be copied into each worker. One array of bytes is not.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        pieces = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no item {index} of {len(self)}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].tobytes())
