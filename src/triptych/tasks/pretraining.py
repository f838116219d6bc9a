"""Masked-image-modelling pre-training as a Lightning module."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.mim import MaskedImageModel
from triptych.tasks.optimization import OptimizerSettings, build_optimizer
from triptych.tasks.step_masks import MaskedBatch


class PretrainingModule(pl.LightningModule):
    """Trains a masked image model on batches that come with their masks and plans."""

    def __init__(
        self,
        model: MaskedImageModel,
        settings: OptimizerSettings,
        *,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch

    def transfer_batch_to_device(
        self, batch: MaskedBatch, device: torch.device, dataloader_idx: int
    ) -> MaskedBatch:
        """Images and plan to the device; the mask is read on the host."""
        images = batch.images.to(device, non_blocking=True)
        return batch._replace(images=images, masks=batch.masks.to(device))

    def training_step(self, batch: MaskedBatch, _: int) -> Tensor:
        masks = batch.masks
        return self.model(batch.images, masks.mask, masks.plan, masks.ids_restore).loss

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.model, self.settings, self.steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
