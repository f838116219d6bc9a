"""What one pass of a model over a probe set says of objects: grouping, views and predictions.

Numbers are taken batch by batch and nothing else is kept, so the size of the set does not matter
for memory.

Shapes: B images, L blocks, N tokens of a block, M patches of the first grid, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from triptych.visualization.capture import BlockCapture, Capture, capture
from triptych.visualization.foreground import covered_share
from triptych.visualization.grouping import MEASURES, grouping_metrics
from triptych.visualization.object_tokens import COVERAGE
from triptych.visualization.perturbations import Grid, generator_of
from triptych.visualization.probe_set import ProbeSet, shuffle_labels
from triptych.visualization.rollout_numbers import ROLLOUT_NUMBERS, rollout_numbers

NEIGHBOURS = 5
BATCH = 16


@dataclass(frozen=True)
class Layer:
    """A block: its name, stage, token grid and (height, width) of a token in pixels."""

    name: str
    stage: int
    grid: Grid
    stride: Grid


@dataclass(frozen=True)
class Readings:
    """Numbers of every image and block, NaN where an image has none.

    Attributes:
        layers: the L blocks.
        grouping: measure of :data:`MEASURES` → (B, L). Where there is no cluster the similarity
            in clusters is NaN, with fewer than two the silhouette.
        neighbours: (B, L), share of an object token's five nearest tokens that lie on the same
            object, averaged over object tokens.
        rollout: number of :data:`ROLLOUT_NUMBERS` → (B, L); empty without attention.
        head_rows: (B, L, M), what the head would read after each block; empty without attention.
        reads_class_token: (L,), whether that is a class token's row.
        logits: (B, classes).
    """

    layers: tuple[Layer, ...]
    grouping: dict[str, np.ndarray]
    neighbours: np.ndarray
    rollout: dict[str, np.ndarray]
    head_rows: np.ndarray
    reads_class_token: tuple[bool, ...]
    logits: np.ndarray


def read(
    model: nn.Module,
    probe: ProbeSet,
    *,
    attention: bool = True,
    grouping: bool = True,
    objects: Tensor | None = None,
    batch_size: int = BATCH,
) -> Readings:
    """Run ``model`` over ``probe`` and take the numbers.

    Args:
        attention: whether to take those of rollout too.
        grouping: whether to take those of clusters and neighbours.
        objects: uint8 (B, Y, X) instances for the numbers of rollout; those of the probe set by
            default. After occlusion, those before it.

    Raises:
        ValueError: as `capture`.
    """
    instances = probe.instances if objects is None else objects
    parts = []
    for places, captured in _passes(model, probe, attention, batch_size):
        one = _of_batch(captured, len(places), instances[places] if attention else None)
        parts.append(_with_grouping(one, captured, probe, places) if grouping else one)
    return _joined(parts)


def read_with_control(
    model: nn.Module, probe: ProbeSet, *, batch_size: int = BATCH
) -> tuple[Readings, Readings]:
    """:func:`read`, and the same with the object tokens dealt out anew, from one pass.

    Raises:
        ValueError: as `capture`.
    """
    parts, permuted = [], []
    for places, captured in _passes(model, probe, True, batch_size):
        one = _of_batch(captured, len(places), probe.instances[places])
        parts.append(_with_grouping(one, captured, probe, places))
        permuted.append(_with_grouping(one, captured, probe, places, permute_labels=True))
    return _joined(parts), _joined(permuted)


def _passes(
    model: nn.Module, probe: ProbeSet, attention: bool, batch_size: int
) -> Iterator[tuple[list[int], Capture]]:
    """Numbers of the images of each batch, and what a forward pass over it leaves."""
    device = next(model.parameters()).device
    images = probe.images()
    for places in torch.arange(len(probe)).split(batch_size):
        yield (
            places.tolist(),
            capture(
                model,
                images[places].to(device),
                attention=attention,
                norms=False,
                head_fusion="mean" if attention else None,
            ),
        )


def _of_batch(captured: Capture, count: int, instances: Tensor | None) -> Readings:
    """All but grouping; of rollout only where ``instances`` (B, Y, X) are given."""
    layers = tuple(
        Layer(block.name, block.stage, block.grid, block.stride) for block in captured.blocks
    )
    nothing = np.full((count, len(layers)), math.nan)
    numbers = None if instances is None else rollout_numbers(captured, instances)
    return Readings(
        layers,
        {name: nothing.copy() for name in MEASURES},
        nothing.copy(),
        {} if numbers is None else {name: numbers[name] for name in ROLLOUT_NUMBERS},
        np.empty((count, 0, 0)) if numbers is None else numbers["head_rows"],
        tuple(_has_class_token(captured, block) for block in captured.blocks),
        captured.output.detach().float().cpu().numpy(),
    )


def _with_grouping(
    readings: Readings,
    captured: Capture,
    probe: ProbeSet,
    places: list[int],
    *,
    permute_labels: bool = False,
) -> Readings:
    """``readings`` with the numbers of clusters and neighbours, where an image has objects."""
    measured = {name: values.copy() for name, values in readings.grouping.items()}
    neighbours = readings.neighbours.copy()
    grids = {block.grid for block in captured.blocks}
    owned = {(image, grid): probe.object_tokens(image, grid) for image in places for grid in grids}
    for layer, block in enumerate(captured.blocks):
        if block.visible is not None:
            continue
        for row, image in enumerate(places):
            tokens = owned[image, block.grid]
            if tokens is None:
                continue
            if permute_labels:
                tokens = shuffle_labels(tokens, generator_of(1, image))
            hidden_NC = block.hidden[row, block.prefix_tokens :].float().cpu()
            for name, value in _defined(hidden_NC, tokens, probe.names[image]).items():
                measured[name][row, layer] = value
            neighbours[row, layer] = neighbour_purity(hidden_NC, tokens)
    return replace(readings, grouping=measured, neighbours=neighbours)


def _has_class_token(captured: Capture, block: BlockCapture) -> bool:
    return captured.reads_class_token and block.prefix_tokens > 0


def _defined(hidden_NC: Tensor, tokens: list[Tensor], names: tuple[str, ...]) -> dict[str, float]:
    """Grouping measures; NaN in place of the numbers that stand for "nothing to measure"."""
    metrics = grouping_metrics(hidden_NC, tokens, names)
    clusters = round(metrics["clusters_per_object"] * len(names))
    if clusters < 2:
        metrics["silhouette"] = math.nan
    if clusters < 1:
        metrics["in_cluster_cosine"] = math.nan
    return metrics


def neighbour_purity(hidden_NC: Tensor, objects: list[Tensor], count: int = NEIGHBOURS) -> float:
    """Share of the ``count`` nearest other tokens (Euclidean) on the same object.

    Averaged over the tokens of objects; all tokens of the image can be neighbours.
    """
    owner_N = np.full(len(hidden_NC), -1)
    for number, tokens in enumerate(objects):
        owner_N[tokens.numpy()] = number
    inside, hidden = torch.cat(objects).numpy(), hidden_NC.numpy(force=True)
    distance_TN = cdist(hidden[inside], hidden)
    distance_TN[np.arange(len(inside)), inside] = math.inf
    nearest = distance_TN.argsort(1, kind="stable")[:, : min(count, len(hidden) - 1)]
    return float((owner_N[nearest] == owner_N[inside][:, None]).mean())


def object_patches(instances: Tensor, grid: Grid) -> Tensor:
    """Bool (B, M): patches that objects cover by 40 % or more."""
    return covered_share(instances > 0, grid) >= COVERAGE


def _joined(parts: list[Readings]) -> Readings:
    first = parts[0]
    return Readings(
        first.layers,
        {name: np.concatenate([part.grouping[name] for part in parts]) for name in first.grouping},
        np.concatenate([part.neighbours for part in parts]),
        {name: np.concatenate([part.rollout[name] for part in parts]) for name in first.rollout},
        np.concatenate([part.head_rows for part in parts]),
        first.reads_class_token,
        np.concatenate([part.logits for part in parts]),
    )
