"""All that the findings are asked of: one model, one probe set, seen whole and disturbed.

Shapes: B images, F filters, N patches, E pixels of a patch times channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.visualization.filter_scores import FilterScores, filter_energy, filter_scores
from triptych.visualization.filters import PatchFilters, patch_filters
from triptych.visualization.foreground import covered_share
from triptych.visualization.object_tokens import COVERAGE
from triptych.visualization.perturbations import Occlusion, choose_cells, generator_of, occlude
from triptych.visualization.probe_set import ProbeSet
from triptych.visualization.readings import Readings, read, read_with_control
from triptych.visualization.views import global_views, patches_of

SHUFFLE_SIDES = (2, 8)
# Shares of the eligible cells, as for the released grouping curves.
OCCLUDED_SHARES = {Occlusion.random: 0.5, Occlusion.salient: 0.5, Occlusion.non_salient: 1.0}
_LOCALITY_FILTERS = 8


@dataclass(frozen=True)
class FilterEvidence:
    """Level 0, each for the images with both object and background patches.

    Attributes:
        scores: of every filter.
        pixels_auroc: (B,), AUROC of the brightness-free energy ‖x_k − mean‖₂ of raw patches.
        leak: (B,), largest change in the view of a patch that was not touched, when half of the
            others were blackened, over the largest entry of the view.
    """

    scores: FilterScores
    pixels_auroc: np.ndarray
    leak: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Attributes:
    level_0: None where the model's filters are not known or no image serves; then ``no_filters``
        says why.
    permuted: ``plain`` with the object tokens dealt out anew, a control.
    shuffled: by cells to a side.
    occluded: by kind, at :data:`OCCLUDED_SHARES`; rollout numbers are of the objects before.
    """

    probe: ProbeSet
    plain: Readings
    permuted: Readings
    shuffled: Mapping[int, Readings]
    occluded: Mapping[Occlusion, Readings]
    level_0: FilterEvidence | None
    no_filters: str = ""


def gather_evidence(model: nn.Module, probe: ProbeSet) -> Evidence:
    """Six passes of ``model`` over ``probe``: whole, shuffled by 2 and 8, and three occlusions.

    Fewer where nothing could be read off them: images are shuffled for what is asked of two
    objects in one image, and occluded for what is asked of one.

    Raises:
        ValueError: as `capture`.
    """
    level_0, why = None, ""
    try:
        filters = patch_filters(model)
    except ValueError as error:
        why = str(error)
    else:
        level_0 = filter_evidence(filters, probe)
        why = "" if level_0 else "no image of the probe set has both object and background patches"
    return Evidence(
        probe,
        *read_with_control(model, probe),
        {
            side: read(model, probe.shuffled(side), attention=False)
            for side in SHUFFLE_SIDES
            if probe.has_groups and not any(edge % side for edge in probe.size)
        },
        {
            kind: read(model, probe.occluded(kind, share), objects=probe.instances)
            for kind, share in OCCLUDED_SHARES.items()
            if bool(probe.objects.any())
        },
        level_0,
        why,
    )


def filter_evidence(filters: PatchFilters, probe: ProbeSet) -> FilterEvidence | None:
    """Level 0 of the images that serve; None if there is none."""
    grid = filters.grid(probe.size)
    filters = replace(filters, weight=filters.weight.float().cpu())
    on_BN = covered_share(probe.objects, grid) >= COVERAGE
    useful = (on_BN.any(1) & ~on_BN.all(1)).nonzero()[:, 0].tolist()
    if not useful:
        return None
    images, inside_BN = probe.images()[useful], on_BN[useful]
    scores = filter_scores(filter_energy(images, filters), inside_BN)
    patches_BNE = patches_of(images, filters).flatten(2)
    raw_BN = (patches_BNE - patches_BNE.mean(1, keepdim=True)).norm(dim=-1)
    raw = filter_scores(raw_BN[:, None], inside_BN).auroc[:, 0]
    return FilterEvidence(scores, raw.double().numpy(), _leak(filters, probe.take(useful)))


def _leak(filters: PatchFilters, probe: ProbeSet) -> np.ndarray:
    """How much of a view changes when other patches are blackened, for the first filters."""
    grid, chosen = filters.grid(probe.size), range(min(_LOCALITY_FILTERS, filters.count))
    whole = probe.images()
    black = torch.stack([(0 - torch.tensor(probe.mean)) / torch.tensor(probe.std)])
    leaks = []
    for index in range(len(probe)):
        cells = choose_cells(
            Occlusion.random,
            0.5,
            torch.zeros(grid[0] * grid[1], dtype=torch.bool),
            generator_of(2, index),
        )
        part = _occlude_patches(whole[index], cells, grid, black[0])
        rest_N = torch.ones(grid[0] * grid[1], dtype=torch.bool)
        rest_N[cells] = False
        before, after = (
            _responses(image[None], filters, list(chosen))[0][:, rest_N]
            for image in (whole[index], part)
        )
        leaks.append(float((before - after).abs().max() / before.abs().max().clamp_min(1e-30)))
    return np.array(leaks)


def _occlude_patches(image: Tensor, cells: Tensor, grid: tuple[int, int], black: Tensor) -> Tensor:
    """``image`` (C, Y, X) with the patches ``cells`` black as the model sees black."""
    if image.shape[1] % grid[0] or image.shape[2] % grid[1]:
        raise ValueError(f"an image of {tuple(image.shape[1:])} has no {grid} grid of patches")
    return torch.stack(
        [occlude(one, cells, grid, float(fill)) for one, fill in zip(image, black, strict=True)]
    )


def _responses(images: Tensor, filters: PatchFilters, chosen: list[int]) -> Tensor:
    """What the patch embedding makes of every patch without its bias, (B, F, N)."""
    made = F.conv2d(images, filters.weight[chosen], stride=filters.stride, padding=filters.padding)
    return made.flatten(2)


def views_add_up(filters: PatchFilters, images: Tensor, chosen: list[int]) -> float:
    """Largest difference between the sum over a local view and the embedding without its bias.

    Over the largest entry; rounding alone makes it differ from 0 (arXiv 2210.07646, level 0).
    """
    views = global_views(images, filters, chosen)
    sums = F.avg_pool2d(views.sum(2), filters.size, filters.stride, divisor_override=1).flatten(2)
    made = _responses(images, filters, chosen)
    return float((sums - made).abs().max() / made.abs().max())
