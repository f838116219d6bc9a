"""Where the input of a sparse convolution comes from: worked out on the CPU, once for each mask.

Masks hide whole units, so the visible outputs of a convolution are those of the visible units,
and each unit's outputs see one tile of the input: the unit and a halo around it. A sparse
convolution is thus a gather of tiles, zero where nothing is visible, and a dense convolution of
each tile. Tiles hold fewer values than index pairs: (8 + 2)² / 8² instead of 9 for each token of a
unit of 8 x 8 under a 3 x 3 kernel.

Shapes: P plans (1 for the whole batch, or B), U x V mask units, K visible units of a plan,
N input tokens, M output tokens of a plan, h x w a tile, S = P·K·h·w values of all tiles, J tiles
that share a token at most, R rows of index pairs, F kernel positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from triptych.mim.rows import Slots
from triptych.mim.windows import Pair


@dataclass(frozen=True)
class Convolution:
    """Kernel, stride and padding of a convolution, each (down, across); ``grouped`` if channels
    do not all meet, as in a depthwise one."""

    kernel: Pair
    stride: Pair
    padding: Pair
    grouped: bool = False

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Convolution:
        """The geometry of ``conv``.

        Raises:
            ValueError: it is dilated, or pads with anything but a number of zeros.
        """
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(
                f"a sparse convolution pads with a given number of zeros, got "
                f"padding={conv.padding!r} and padding_mode={conv.padding_mode!r}"
            )
        if any(step != 1 for step in conv.dilation):
            raise ValueError(
                f"a sparse convolution has dilation 1, got {tuple(map(int, conv.dilation))}"
            )
        kernel, stride, padding = (
            (int(pair[0]), int(pair[1])) for pair in (conv.kernel_size, conv.stride, conv.padding)
        )
        return cls(kernel, stride, padding, conv.groups > 1)

    def tile(self, outputs: Pair) -> Pair:
        """Sides of the input that ``outputs`` (down, across) of a unit see."""
        down, across = (
            (count - 1) * step + size
            for count, step, size in zip(outputs, self.stride, self.kernel, strict=True)
        )
        return down, across

    def overhang(self) -> Pair:
        """How far a tile reaches beyond its unit at the bottom and on the right, at least 0."""
        down, across = (
            max(0, size - before - step)
            for size, before, step in zip(self.kernel, self.padding, self.stride, strict=True)
        )
        return down, across


@dataclass(frozen=True)
class ConvolutionPlan:
    """Which input token each value of the tiles is, and the way back.

    ``tiles`` (P·K, h, w) numbers the input tokens, N·P where there is none; ``back`` (N·P, J) the
    values of the tiles that a token went to, S where there are no more. With a plan for each
    sample, tokens are numbered through the batch. ``outputs`` are the (down, across) outputs of a
    unit. ``pairs`` (2, F, R) holds input and output numbers for each kernel position, as spconv
    wants them, ``pair_counts`` (F) how many, always in host memory; None where spconv is not used.
    """

    convolution: Convolution
    tiles: Tensor
    back: Tensor
    outputs: Pair
    inputs: int
    pairs: Tensor | None = None
    pair_counts: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> ConvolutionPlan:
        """The same plan with every tensor moved, but for the counts that the host reads."""
        return replace(
            self,
            tiles=move(self.tiles),
            back=move(self.back),
            pairs=None if self.pairs is None else move(self.pairs),
        )


@dataclass(frozen=True)
class Cells:
    """Cells of tokens that become one: ``slots`` puts the tokens of each side by side, counted
    down, then across; ``visible`` (P, cells of the grid)."""

    slots: Slots
    visible: Tensor

    def map(self, move: Callable[[Tensor], Tensor]) -> Cells:
        """The same plan with every tensor moved."""
        return Cells(self.slots._map(move), move(self.visible))


def plan_convolution(
    convolution: Convolution, visible_PUV: np.ndarray, grid: Pair, *, pairs: bool = False
) -> ConvolutionPlan:
    """Plan a convolution whose visible outputs are those of the visible units.

    Args:
        convolution: its geometry; outputs times stride are the inputs of a unit.
        visible_PUV: bool (P, U, V), at least one True in each plan.
        grid: (height, width) of the input in tokens.
        pairs: also list index pairs for spconv.

    Raises:
        ValueError: the units are no multiple of the stride, or the padding lets the outputs of a
            unit begin elsewhere than at the unit.
    """
    unit = grid[0] // visible_PUV.shape[1], grid[1] // visible_PUV.shape[2]
    outputs = _outputs(convolution, unit)
    number_PHW = _token_numbers(visible_PUV, unit)
    tokens = int(visible_PUV.sum()) * unit[0] * unit[1]
    tiles = _tiles(convolution, visible_PUV, unit, number_PHW, tokens)
    plan = ConvolutionPlan(
        convolution=convolution,
        tiles=torch.from_numpy(tiles),
        back=torch.from_numpy(_back(tiles, tokens)),
        outputs=outputs,
        inputs=tokens,
    )
    if not pairs:
        return plan
    listed, counts = _index_pairs(convolution, tiles, outputs, visible_PUV, tokens)
    return replace(plan, pairs=torch.from_numpy(listed), pair_counts=torch.from_numpy(counts))


def plan_by_unit(visible_PUV: np.ndarray, unit: Pair) -> Slots:
    """Slots in which the visible tokens lie unit by unit, row-major in each."""
    return Slots.of(_slot_by_unit(visible_PUV, unit), int(visible_PUV.sum()) * unit[0] * unit[1])


def plan_cells(visible_PHW: np.ndarray, side: int) -> Cells:
    """Plan the cells of ``side`` x ``side`` tokens that are visible; none may be so in part.

    Raises:
        ValueError: the cells do not divide the grid, or a cell is visible in part.
    """
    plans, height, width = visible_PHW.shape
    if height % side or width % side:
        raise ValueError(f"cells of {side}x{side} tokens do not divide a {height}x{width} grid")
    cells = visible_PHW.reshape(plans, height // side, side, width // side, side)
    visible_PUV = cells[:, :, 0, :, 0]
    if not (cells == visible_PUV[:, :, None, :, None]).all():
        raise ValueError(f"a cell of {side}x{side} tokens is visible in part")
    number = np.arange(int(visible_PUV.sum()) * side * side).reshape(-1, side, side)
    slot_N = _spread(number.transpose(0, 2, 1), visible_PUV)[visible_PHW]
    visible = torch.from_numpy(visible_PUV.reshape(plans, -1).copy())
    return Cells(Slots.of(slot_N, len(slot_N)), visible)


def _outputs(convolution: Convolution, unit: Pair) -> Pair:
    if any(side % step for side, step in zip(unit, convolution.stride, strict=True)):
        raise ValueError(
            f"mask units of {unit[0]}x{unit[1]} tokens are no multiple of the stride "
            f"{convolution.stride[0]}x{convolution.stride[1]}"
        )
    for size, step, before in zip(
        convolution.kernel, convolution.stride, convolution.padding, strict=True
    ):
        if not 0 < size - 2 * before <= step:
            raise ValueError(
                f"padding {before} does not keep a kernel of {size} with stride {step} on its "
                f"grid; an input of n strides must have n outputs"
            )
    return unit[0] // convolution.stride[0], unit[1] // convolution.stride[1]


def _token_numbers(visible_PUV: np.ndarray, unit: Pair) -> np.ndarray:
    """Number of each visible token, through the batch; how many there are at the others."""
    visible = visible_PUV.repeat(unit[0], axis=1).repeat(unit[1], axis=2)
    count = int(visible.sum())
    number = np.full(visible.shape, count, dtype=np.int32)
    number[visible] = np.arange(count, dtype=np.int32)
    return number


def _tiles(
    convolution: Convolution,
    visible_PUV: np.ndarray,
    unit: Pair,
    number_PHW: np.ndarray,
    nothing: int,
) -> np.ndarray:
    """Input token of each value of the tiles, (P·K, h, w)."""
    before, after = convolution.padding, convolution.overhang()
    border = [(0, 0), *zip(before, after, strict=True)]
    padded = np.pad(number_PHW, border, constant_values=nothing)
    tile = convolution.tile(_outputs(convolution, unit))
    views = sliding_window_view(padded, tile, axis=(1, 2))[:, :: unit[0], :: unit[1]]
    rows, columns = visible_PUV.shape[1:]
    return np.ascontiguousarray(views[:, :rows, :columns][visible_PUV])


def _back(tiles: np.ndarray, tokens: int) -> np.ndarray:
    """Values of the tiles that hold each token, (tokens, J), the number of values at the rest."""
    flat = tiles.ravel()
    value = np.flatnonzero(flat < tokens)
    value = value[np.argsort(flat[value], kind="stable")]
    count = np.bincount(flat[value], minlength=tokens)
    back = np.full((tokens, max(1, int(count.max()))), flat.size, dtype=np.int32)
    token = flat[value]
    back[token, np.arange(len(value)) - (np.cumsum(count) - count)[token]] = value
    return back


def _index_pairs(
    convolution: Convolution,
    tiles: np.ndarray,
    outputs: Pair,
    visible_PUV: np.ndarray,
    tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (2, F, R) of input and output numbers, -1 at the rest, and their counts (F)."""
    output = np.argsort(_slot_by_unit(visible_PUV, outputs))  # token number of each slot
    windows = sliding_window_view(tiles, convolution.kernel, axis=(1, 2))
    windows = windows[:, :: convolution.stride[0], :: convolution.stride[1]]
    input_MF = windows.reshape(len(output), -1)
    counts = (input_MF < tokens).sum(0).astype(np.int32)
    pairs = np.full((2, input_MF.shape[1], int(counts.max())), -1, dtype=np.int32)
    for position, source in enumerate(input_MF.T):
        present = source < tokens
        pairs[0, position, : counts[position]] = source[present]
        pairs[1, position, : counts[position]] = output[present]
    return pairs, counts


def _slot_by_unit(visible_PUV: np.ndarray, unit: Pair) -> np.ndarray:
    """Slot of each visible token in row-major order, through the batch."""
    number = np.arange(int(visible_PUV.sum()) * unit[0] * unit[1]).reshape(-1, *unit)
    visible = visible_PUV.repeat(unit[0], axis=1).repeat(unit[1], axis=2)
    return _spread(number, visible_PUV)[visible]


def _spread(value_Kuv: np.ndarray, visible_PUV: np.ndarray) -> np.ndarray:
    """Lay the values of the visible units on the grid of tokens, (P, H, W)."""
    plans, rows, columns = visible_PUV.shape
    down, across = value_Kuv.shape[1:]
    canvas = np.zeros((plans, rows, columns, down, across), dtype=value_Kuv.dtype)
    canvas[visible_PUV] = value_Kuv
    return canvas.transpose(0, 1, 3, 2, 4).reshape(plans, rows * down, columns * across)
