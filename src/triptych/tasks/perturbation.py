"""Accuracy on images with cells blackened or shuffled (Naseer et al., NeurIPS 2021).

Occlusion drops a share of the cells of a 14 x 14 grid (images of other sizes: see
:func:`triptych.visualization.probe_set.occlusion_grid`) before normalisation: of all cells, of
those on objects, or of those beside them. There objects are what DINO attends to; here they are
masks guessed from the pixels. Shuffling permutes the cells of coarser and finer grids.

Shapes: B images, C channels, S image size, G cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych.data.corruptions.dataset import as_bytes, normalised
from triptych.visualization.capture import evaluating
from triptych.visualization.foreground import estimated_objects
from triptych.visualization.intervals import mean_over_images
from triptych.visualization.object_tokens import foreground_tokens
from triptych.visualization.perturbations import (
    PATCH_DROP_RATIOS,
    SHUFFLE_GRIDS,
    Grid,
    Occlusion,
    choose_cells,
    generator_of,
    occlude,
    random_permutation,
    shuffle_cells,
)
from triptych.visualization.probe_set import occlusion_grid

Row = dict[str, Any]
# What is done, and how much of it: a share of cells, or a number of cells.
Amount = tuple[str, float]
# Shares of dropped cells that are metrics of their own: half, and the paper's headline.
HEADLINES = (0.5, 0.8)
SHUFFLE = "shuffle"


def perturbation_rows(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    seed: int = 0,
) -> list[Row]:
    """One row for each kind and amount: accuracy with its 95 % interval over images.

    ``batches`` are (images (B, C, S, S) normalised, labels (B,), indices (B,)). What happens to an
    image is a function of ``seed``, its index, the kind and the amount.

    Raises:
        ValueError: no grid of cells divides the images.
    """
    hits: dict[Amount, list[Tensor]] = {}
    grids: dict[Amount, str] = {}
    model.to(device)
    with evaluating(model):
        for images, labels, indices in batches:
            pixels = as_bytes(images, mean, std)
            for amount, grid, changed in disturbed(pixels, indices.tolist(), seed):
                logits = model(normalised(changed, mean, std).to(device))
                hits.setdefault(amount, []).append(logits.argmax(1).cpu() == labels)
                grids[amount] = f"{grid[0]}x{grid[1]}"
    return [_row(amount, grids[amount], torch.cat(parts)) for amount, parts in hits.items()]


def _row(amount: Amount, grid: str, right_N: Tensor) -> Row:
    found = mean_over_images(right_N.double().numpy())
    return {
        "kind": amount[0],
        "amount": amount[1],
        "grid": grid,
        "accuracy": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "images": found.count,
    }


def disturbed(
    pixels: Tensor, indices: list[int], seed: int
) -> Iterator[tuple[Amount, Grid, Tensor]]:
    """``pixels``, uint8 (B, C, S, S), as they are and then disturbed in every way."""
    size = (int(pixels.shape[2]), int(pixels.shape[3]))
    grid = occlusion_grid(size)
    yield ("none", 0.0), (1, 1), pixels
    objects_BYX = estimated_objects(pixels.float() / 255)
    foreground = [foreground_tokens(one[None], grid) for one in objects_BYX]
    for kind in Occlusion:
        for share in PATCH_DROP_RATIOS[1:]:
            changed = [
                occlude(image, choose_cells(kind, share, on_G, generator_of(seed, index)), grid)
                for image, on_G, index in zip(pixels, foreground, indices, strict=True)
            ]
            yield (str(kind), share), grid, torch.stack(changed)
    for grid in shuffle_grids(size):
        changed = [
            shuffle_cells(image, random_permutation(grid, generator_of(seed, index)), grid)
            for image, index in zip(pixels, indices, strict=True)
        ]
        yield (SHUFFLE, float(grid[0] * grid[1])), grid, torch.stack(changed)


def shuffle_grids(size: Grid) -> list[Grid]:
    """The published grids that cut images of ``size`` pixels into whole cells of 2 or more."""
    return [
        grid
        for grid in SHUFFLE_GRIDS[1:]
        if all(
            side % cells == 0 and side // cells > 1 for side, cells in zip(size, grid, strict=True)
        )
    ]


def perturbation_metrics(rows: list[Row]) -> dict[str, float]:
    """Accuracy of each kind, averaged over its amounts, and at the amounts that papers name."""
    by_kind: dict[str, Mapping[float, float]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], {})[row["amount"]] = row["accuracy"]  # type: ignore[index]
    found: dict[str, float] = {}
    for kind, accuracies in by_kind.items():
        if kind == "none":
            continue
        word = kind if kind == SHUFFLE else f"occlusion_{kind}"
        found[f"perturbation/{word}"] = float(np.mean(list(accuracies.values())))
        found |= {
            f"perturbation/{word}/{share:.0%}".replace("%", ""): accuracies[share]
            for share in HEADLINES
            if kind != SHUFFLE
        }
    return found
