"""The window lattice of a token grid: which tokens attend to each other, and their offsets.

Two lattices are known. On a grid that is a multiple of the window they are the same.

``"backbone"``: what timm's Swin computes. It rolls the grid by the shift, pads it at the bottom
and on the right, and cuts it into windows. Padding is a key like any other, with the key and
value of a zero token, and with a shift the first rows (columns) of the grid can end up in one
window with the last ones: timm pads after rolling, so its attention mask does not part them.

``"published"``: GreenMIM's (arXiv 2205.13515). Windows begin at positions ≡ shift (mod window),
there is no padding and nothing wraps around; where the smaller side of the grid fits into the
window, nothing is shifted.

``"tokens"``, the default of encoders: padding is no token, so it goes with the hidden tokens. As
soon as something is hidden the windows are the published ones; with nothing hidden they are the
backbone's, so that the encoder equals it.

Shapes: T tokens of the grid, Q padding positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

import numpy as np

Pair = tuple[int, int]


class Lattice(StrEnum):
    """How windows lie on a grid that is not a multiple of the window; see the module."""

    tokens = "tokens"
    backbone = "backbone"
    published = "published"


@dataclass(frozen=True)
class WindowLattice:
    """Windows as the attention sees them: parts of a window that are masked apart count apart.

    ``window`` (T) is the window of each token, ``position`` (T) a code of its place in it: the row
    of the relative position bias table for query i and key j is
    ``position[i] - position[j] + centre``. The same for padding in ``pad_window`` and
    ``pad_position`` (Q). ``area`` is the number of positions in a whole window.
    """

    window: np.ndarray
    position: np.ndarray
    pad_window: np.ndarray
    pad_position: np.ndarray
    num_windows: int
    centre: int
    table_rows: int
    area: int

    @cached_property
    def window_key(self) -> np.ndarray:
        """``window`` in 16 bits where they suffice, which numpy sorts in linear time."""
        small = self.num_windows <= np.iinfo(np.uint16).max
        return self.window.astype(np.uint16 if small else np.int64)

    @cached_property
    def largest(self) -> int:
        """Tokens and padding of the window that has most of both."""
        return int(np.bincount(np.concatenate((self.window, self.pad_window))).max())


def resolve(lattice: Lattice, *, hidden: bool) -> Lattice:
    """The lattice that ``tokens`` stands for, given whether anything is ``hidden``."""
    if lattice is Lattice.tokens:
        return Lattice.published if hidden else Lattice.backbone
    return lattice


@lru_cache(maxsize=256)
def window_lattice(grid: Pair, window: Pair, shift: Pair, lattice: Lattice) -> WindowLattice:
    """The lattice of windows (height, width) with borders moved by ``shift`` on ``grid``.

    ``lattice`` is one of the two that windows can have; see :func:`resolve` for ``tokens``.
    """
    if lattice is Lattice.published:
        rows, columns = (_published_axis(grid, window, shift, axis) for axis in (0, 1))
    else:
        rows, columns = (
            _backbone_axis(side, w, s) for side, w, s in zip(grid, window, shift, strict=True)
        )
    stride = 2 * window[1] - 1
    window_RC = rows.window[:, None] * (columns.window.max() + 1) + columns.window[None, :]
    position_RC = rows.position[:, None] * stride + columns.position[None, :]
    inside_RC = np.zeros(window_RC.shape, dtype=bool)
    inside_RC[: grid[0], : grid[1]] = True
    ids, dense = np.unique(window_RC, return_inverse=True)
    dense_RC = dense.reshape(window_RC.shape)
    return WindowLattice(
        window=dense_RC[inside_RC],
        position=position_RC[inside_RC],
        pad_window=dense_RC[~inside_RC],
        pad_position=position_RC[~inside_RC],
        num_windows=len(ids),
        centre=(window[0] - 1) * stride + window[1] - 1,
        table_rows=(2 * window[0] - 1) * stride,
        area=window[0] * window[1],
    )


@dataclass(frozen=True)
class _Axis:
    """Window and position of each row (or column); padding follows the rows of the grid."""

    window: np.ndarray
    position: np.ndarray


def _published_axis(grid: Pair, window: Pair, shift: Pair, axis: int) -> _Axis:
    unshifted = any(side <= w for side, w in zip(grid, window, strict=True))
    size = window[axis]
    before_first = 0 if unshifted else (size - shift[axis]) % size
    place = np.arange(grid[axis]) + before_first
    return _Axis(place // size, place % size)


def _backbone_axis(side: int, window: int, shift: int) -> _Axis:
    padded = -(-side // window) * window
    place = np.arange(padded)
    place[:side] = (place[:side] - shift) % side  # the roll; padding keeps the last places
    # timm's mask parts the last window where, on a full grid, the roll has wrapped around.
    wrapped = (place >= padded - shift).astype(np.int64)
    return _Axis(2 * (place // window) + wrapped, place % window)
