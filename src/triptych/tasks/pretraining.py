"""Masked-image-modelling pre-training as a Lightning module."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from triptych.mim import MaskedImageModel, mask_from_noise, restore_order, sample_noise
from triptych.tasks.optimization import OptimizerSettings, build_optimizer


class PretrainingModule(pl.LightningModule):
    """Trains a masked image model; masks are a function of (seed, epoch, image)."""

    def __init__(
        self,
        model: MaskedImageModel,
        settings: OptimizerSettings,
        *,
        steps_per_epoch: int,
        mask_ratio: float,
        mask_per_sample: bool,
        seed: int,
        published_order: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.mask_ratio = mask_ratio
        self.mask_per_sample = mask_per_sample
        self.published_order = published_order
        self.seed = seed

    def noise(self, epoch: int, indices: Tensor) -> Tensor:
        """Noise (B, L) of the images ``indices`` (B,) in ``epoch``; the least stays visible."""
        rows, columns = self.model.unit_grid
        keys = indices.cpu() if self.mask_per_sample else indices[:1].cpu()
        noise_BL = sample_noise(rows * columns, seed=self.seed, epoch=epoch, indices=keys)
        return noise_BL.expand(len(indices), -1)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        images, _labels, indices = batch
        noise_BL = self.noise(self.current_epoch, indices)
        mask_BL = mask_from_noise(noise_BL, self.mask_ratio)
        ids_restore = restore_order(noise_BL).to(images.device) if self.published_order else None
        return self.model(images, mask_BL, self.model.plan(mask_BL), ids_restore).loss

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.model, self.settings, self.steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
