"""Deletion and insertion curves: does an attribution name the patches that matter?

Shapes: G cells of a grid, S steps: G + 1, fewer where several cells go at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    (curves,) = faithfulness_by_method(
        logits_of, image, {"": scores_G}, grid, target, fill=fill, batch_size=batch_size
    ).values()
    return curves


@torch.no_grad()
def faithfulness_by_method(
    logits_of: Callable[[Tensor], Tensor],
    image: Tensor,
    scores: Mapping[str, Tensor],
    grid: Grid,
    target: int,
    *,
    step: int = 1,
    fill: float = 0.0,
    batch_size: int = 32,
) -> dict[str, Faithfulness]:
    """:func:`faithfulness` of several methods on one image.

    The whole and the empty image, at which all curves end, are run once.

    Args:
        scores: relevance of each cell by the name of the method.
        step: cells that go or come at a time.

    Raises:
        ValueError: as :func:`faithfulness`, or ``step`` does not divide the number of cells.
    """
    cells = grid[0] * grid[1]
    if step < 1 or cells % step:
        raise ValueError(f"step={step} does not divide the {cells} cells of the grid")
    states = [image, occlude(image, torch.arange(cells), grid, fill)]
    for scores_G in scores.values():
        if scores_G.numel() != cells or not bool(scores_G.isfinite().all()):
            raise ValueError(
                f"{scores_G.numel()} scores were given; a {grid[0]}x{grid[1]} grid needs {cells} "
                "finite ones"
            )
        order = scores_G.flatten().cpu().sort(descending=True, stable=True).indices
        counts = range(step, cells, step)
        states += [occlude(image, order[:count], grid, fill) for count in counts]
        states += [occlude(image, order[count:], grid, fill) for count in counts]
    parts = torch.stack(states).split(batch_size)
    chances = torch.cat([logits_of(part).softmax(-1)[:, target].float().cpu() for part in parts])
    ends, between = chances[:2], chances[2:].view(len(scores), 2, -1)
    whole, empty = ends[:1], ends[1:]
    return {
        name: Faithfulness(torch.cat((whole, deleted, empty)), torch.cat((empty, inserted, whole)))
        for name, (deleted, inserted) in zip(scores, between, strict=True)
    }


def _area(curve_S: Tensor) -> float:
    return float(torch.trapezoid(curve_S.double()) / (len(curve_S) - 1))
