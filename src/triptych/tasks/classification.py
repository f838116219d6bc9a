"""Supervised classification: fine-tuning of a pre-trained backbone, or training from scratch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.tasks.mixing import PairMixing
from triptych.tasks.optimization import OptimizerSettings, build_optimizer
from triptych.tasks.tally import Tally


class ClassificationModule(pl.LightningModule):
    """Cross-entropy with label smoothing, mixup, cutmix and an average of the weights.

    ``model`` maps images (B, ch, H, W) to logits (B, num_classes). With ``ema_decay`` > 0 the
    exponential moving average of the weights is what is evaluated and kept.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        *,
        steps_per_epoch: int,
        num_classes: int,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        ema_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.label_smoothing = label_smoothing
        mixes = mixup > 0 or cutmix > 0
        self.mixing = PairMixing(num_classes, mixup, cutmix) if mixes else None
        self.tally = Tally()
        self.ema_decay = ema_decay
        self.average = running_average(model, ema_decay) if ema_decay > 0 else None

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts."""
        return self.model if self.average is None else self.average.module

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        images, target, _indices = batch
        if self.mixing is not None:
            images, target = self.mixing(images, target)
        logits = self.model(images)
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not at the end of the batch, where a checkpoint may have been written already.
        if self.average is not None:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        images, target, _indices = batch
        self.tally.add(self.evaluated(images), target)

    def on_validation_epoch_end(self) -> None:
        self.tally.log(self)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(
            self.model, self.settings, self.steps_per_epoch, backbone=self.model
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def running_average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """Running average whose decay grows with the updates, so that short runs forget the start."""

    def average(mean: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        steps = float(count)
        weight = min(decay, (1.0 + steps) / (10.0 + steps))
        return torch.lerp(current, mean, weight)

    averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=average, use_buffers=False)
    averaged.requires_grad_(False)
    return averaged
