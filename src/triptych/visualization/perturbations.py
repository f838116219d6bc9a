"""Occlusion and shuffling of images and their masks alike.

A grid cuts an image into cells of floor(side / grid) pixels; where that leaves pixels over, the
strip at the right or bottom is never occluded, and is black after shuffling, as in the released
code (arXiv 2210.07646). Cells are numbered in row-major order.

Shapes: (..., H, W) pixels of images or masks, (gy, gx) grid, G = gy·gx cells.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int]
Random = np.random.Generator | np.random.RandomState
# PatchDrop (Naseer et al., arXiv 2105.10497): tenths of a 14x14 grid, and its shuffling grids.
PATCH_DROP_GRID = (14, 14)
PATCH_DROP_RATIOS = tuple(k / 10 for k in range(10))
SHUFFLE_GRIDS = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (14, 14), (16, 16))


class Occlusion(StrEnum):
    """Which cells are dropped: any, those on objects, or those beside them."""

    random = "random"
    salient = "salient"
    non_salient = "non_salient"


def generator_of(seed: int, image: int) -> np.random.Generator:
    """The randomness of one image: a function of seed and image number alone."""
    return np.random.default_rng((seed, image))


def choose_cells(kind: Occlusion, ratio: float, foreground_G: Tensor, random: Random) -> Tensor:
    """Numbers of the cells to occlude: a share ``ratio`` of the eligible ones, rounded down.

    Args:
        kind: which cells are eligible.
        ratio: share in [0, 1].
        foreground_G: bool (G,), the cells on objects; only its length matters for ``random``.
        random: draws the order.

    Raises:
        ValueError: the ratio is outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio of occluded cells must lie in [0, 1], got {ratio}")
    eligible_G = {
        Occlusion.random: torch.ones_like(foreground_G),
        Occlusion.salient: foreground_G,
        Occlusion.non_salient: ~foreground_G,
    }[Occlusion(kind)]
    cells = eligible_G.nonzero()[:, 0].numpy()
    random.shuffle(cells)
    return torch.from_numpy(cells[: int(len(cells) * ratio)])


def cells_by_mass(attention_G: Tensor, mass: float) -> Tensor:
    """bool (G,): the fewest cells that hold a share ``mass`` of the attention (DINO's masks).

    Raises:
        ValueError: the mass is outside [0, 1], or attention is negative or 0 everywhere.
    """
    if not 0 <= mass <= 1:
        raise ValueError(f"attention mass must lie in [0, 1], got {mass}")
    total = attention_G.sum()
    if bool((attention_G < 0).any()) or not bool(total > 0):
        raise ValueError("attention must be non-negative, and positive somewhere")
    ordered, order = (attention_G / total).sort(stable=True)
    chosen_G = torch.zeros_like(attention_G, dtype=torch.bool)
    chosen_G[order] = ordered.cumsum(0) > 1 - mass
    return chosen_G


def occlude(image: Tensor, cells: Tensor, grid: Grid, fill: float = 0) -> Tensor:
    """A copy of ``image`` (..., H, W) with ``fill`` in the given cells.

    Raises:
        ValueError: a cell outside the grid, or a grid finer than the image.
    """
    height, width = _cell(image, grid)
    dropped_G = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < len(dropped_G):
        raise ValueError(
            f"cells {int(cells.min())} to {int(cells.max())} were given, but a {grid[0]}x{grid[1]} "
            f"grid has cells 0 to {len(dropped_G) - 1}"
        )
    dropped_G[cells] = True
    dropped = dropped_G.view(grid).repeat_interleave(height, 0).repeat_interleave(width, 1)
    occluded = image.clone()
    inside = occluded[..., : grid[0] * height, : grid[1] * width]
    inside.masked_fill_(dropped.to(image.device), fill)
    return occluded


def shuffle_cells(image: Tensor, permutation_G: Tensor, grid: Grid, fill: float = 0) -> Tensor:
    """Cell t of the result is cell ``permutation_G[t]`` of ``image`` (..., H, W).

    Raises:
        ValueError: no permutation of the grid's cells, or a grid finer than the image.
    """
    height, width = _cell(image, grid)
    count = grid[0] * grid[1]
    if not torch.equal(permutation_G.sort().values.cpu(), torch.arange(count)):
        raise ValueError(
            f"a permutation of the {count} cells of a {grid[0]}x{grid[1]} grid is needed"
        )
    inside = image[..., : grid[0] * height, : grid[1] * width]
    cells = inside.unflatten(-1, (grid[1], width)).unflatten(-3, (grid[0], height))
    flat = cells.movedim(-2, -3).flatten(-4, -3)  # (..., G, cell height, cell width)
    mixed = flat.index_select(-3, permutation_G.to(image.device))
    back = mixed.unflatten(-3, grid).movedim(-3, -2).flatten(-2).flatten(-3, -2)
    shuffled = torch.full_like(image, fill)
    shuffled[..., : grid[0] * height, : grid[1] * width] = back
    return shuffled


def random_permutation(grid: Grid, random: Random) -> Tensor:
    """A uniform permutation of the cells of ``grid``."""
    return torch.from_numpy(random.permutation(grid[0] * grid[1]))


def invert(permutation_G: Tensor) -> Tensor:
    """The permutation that undoes ``permutation_G``."""
    return permutation_G.argsort()


def _cell(image: Tensor, grid: Grid) -> tuple[int, int]:
    height, width = image.shape[-2] // grid[0], image.shape[-1] // grid[1]
    if not height or not width:
        raise ValueError(
            f"a {grid[0]}x{grid[1]} grid is finer than an image of "
            f"{image.shape[-2]}x{image.shape[-1]} pixels"
        )
    return height, width
