"""Masks and their plans, made where the images are loaded: no training step waits for them.

In a worker they are ready before the step begins; without workers the main process makes them
between the steps, where a device is still busy with the step before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.mim import MaskedImageModel, MaskPlan, restore_order, sample_noise


class StepMasks(NamedTuple):
    """What a step needs besides images.

    ``mask`` (B, L) stays in host memory; ``plan`` is the model's plan of it, if it has one;
    ``ids_restore`` (B, L) are the ranks of the noise, where the model needs them.
    """

    mask: Tensor
    plan: MaskPlan | None
    ids_restore: Tensor | None

    def to(self, device: torch.device) -> StepMasks:
        """The same with plan and ranks on ``device``."""
        plan = None if self.plan is None else self.plan.to(device)
        order = self.ids_restore
        order = None if order is None else order.to(device, non_blocking=True)
        return StepMasks(self.mask, plan, order)


class MaskedBatch(NamedTuple):
    """A :class:`~triptych.data.samples.Batch` with its masks."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    masks: StepMasks


class MaskPlanner:
    """Draws masks for ``model`` and plans them; a function of (seed, epoch, indices) alone.

    Args:
        model: of which only the shape is kept, so that a worker gets no weights.
        ratio: share of the units that is hidden.
        per_sample: a mask for each image, or for all the mask of the first one.
        seed: of the masks.
    """

    def __init__(
        self, model: MaskedImageModel, *, ratio: float, per_sample: bool, seed: int
    ) -> None:
        weightless = {id(p): p.detach().to("meta") for p in model.parameters()}
        self.model = copy.deepcopy(model, weightless)
        self.ratio, self.per_sample, self.seed = ratio, per_sample, seed

    def noise(self, epoch: int, indices: Tensor | Sequence[int]) -> Tensor:
        """Noise (B, L) of the images ``indices`` in ``epoch``; the least stays visible."""
        rows, columns = self.model.unit_grid
        keys = indices if self.per_sample else indices[:1]
        noise_BL = sample_noise(rows * columns, seed=self.seed, epoch=epoch, indices=keys)
        return noise_BL.expand(len(indices), -1)

    def __call__(self, epoch: int, indices: Tensor | Sequence[int]) -> StepMasks:
        noise_BL = self.noise(epoch, indices)
        mask_BL = self.model.hide(noise_BL, self.ratio)
        order = restore_order(noise_BL) if self.model.needs_order else None
        return StepMasks(mask_BL, self.model.plan(mask_BL), order)


class MaskedImages(ImageDataset):
    """Images that come with the masks of their epoch."""

    def __init__(self, images: ImageDataset, planner: MaskPlanner) -> None:
        self.images, self.planner = images, planner
        self.labels = images.labels

    def __getitems__(self, keys: Sequence[SampleKey]) -> MaskedBatch:  # type: ignore[override]
        batch: Batch = self.images.__getitems__(keys)
        masks = self.planner(keys[0].epoch, [key.index for key in keys])
        return MaskedBatch(*batch, masks)
