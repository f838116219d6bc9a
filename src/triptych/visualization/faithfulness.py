"""Deletion and insertion curves: does an attribution name the patches that matter?

Shapes: G cells of a grid, S = G + 1 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.visualization.perturbations import Grid, occlude


@dataclass(frozen=True)
class Faithfulness:
    """Probability of the target while patches go or come, best first; both (S,) on the CPU."""

    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> float:
        """Mean height of the deletion curve (trapezoids); lower is better."""
        return _area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """Mean height of the insertion curve (trapezoids); higher is better."""
        return _area(self.insertion)


@torch.no_grad()
def faithfulness(
    logits_of: Callable[[Tensor], Tensor],
    image: Tensor,
    scores_G: Tensor,
    grid: Grid,
    target: int,
    *,
    fill: float = 0.0,
    batch_size: int = 32,
) -> Faithfulness:
    """Delete patches in descending order of their score, and insert them into an empty image.

    The areas depend much on ``fill`` (grey is 0 and black -1 for inputs in [-1, 1]): name it
    wherever they are shown.

    Args:
        logits_of: images (B, channels, H, W) to logits (B, classes), in evaluation mode.
        image: (channels, H, W), scaled as the model wants it.
        scores_G: relevance of each cell, row-major; ties keep their order.
        grid: cells (down, across).
        target: class whose softmax probability is followed.
        fill: value of deleted pixels.
        batch_size: images at a time.

    Raises:
        ValueError: as many scores as cells are needed, and finite ones.
    """
    cells = grid[0] * grid[1]
    if scores_G.numel() != cells or not bool(scores_G.isfinite().all()):
        raise ValueError(
            f"{scores_G.numel()} scores were given; a {grid[0]}x{grid[1]} grid needs {cells} "
            "finite ones"
        )
    order = scores_G.flatten().cpu().sort(descending=True, stable=True).indices
    deleted = [occlude(image, order[:count], grid, fill) for count in range(cells + 1)]
    inserted = [occlude(image, order[count:], grid, fill) for count in range(cells + 1)]
    curves = []
    for images in (deleted, inserted):
        parts = torch.stack(images).split(batch_size)
        chances = [logits_of(part).softmax(-1)[:, target].float().cpu() for part in parts]
        curves.append(torch.cat(chances))
    return Faithfulness(*curves)


def _area(curve_S: Tensor) -> float:
    return float(torch.trapezoid(curve_S.double()) / (len(curve_S) - 1))
