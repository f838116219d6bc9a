"""Position embeddings at another image size, as the published ViT code resizes them.

Shapes: N tokens (prefix tokens first, then the grid row by row), C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_corner_aligned(
    positions_1NC: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Embeddings for ``new_grid``, (1, N', C): linear between grid points, corners on corners.

    The rule of the released loaders of ViT (vision_transformer, ViT-pytorch: a spline zoom of
    order 1). timm, and so everything that loads a timm model at another size, resizes bicubically
    with half-pixel centres, which gives other numbers; take this one to run published checkpoints
    as their own code runs them. Prefix tokens keep their embeddings.

    Raises:
        ValueError: fewer embeddings than the grid has tokens.
    """
    prefix = positions_1NC.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        raise ValueError(
            f"{positions_1NC.shape[1]} position embeddings do not fill a grid of "
            f"{grid[0]}x{grid[1]} tokens"
        )
    on_grid = positions_1NC[:, prefix:].transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(on_grid, new_grid, mode="bilinear", align_corners=True)
    return torch.cat((positions_1NC[:, :prefix], resized.flatten(2).transpose(1, 2)), 1)
