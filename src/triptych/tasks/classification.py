"""Supervised classification: fine-tuning of a pre-trained backbone, or training from scratch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from triptych.tasks.optimization import OptimizerSettings, build_optimizer


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
        self.mixing = _mixing(num_classes, mixup, cutmix)
        self.ema_decay = ema_decay
        self.average = _average(model, ema_decay) if ema_decay > 0 else None

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
        logits = self.evaluated(images)
        size = len(images)
        top1 = (logits.argmax(1) == target).float().mean()
        loss = F.cross_entropy(logits, target)
        self.log("test/accuracy", top1, on_epoch=True, batch_size=size)
        self.log("test/loss", loss, on_epoch=True, batch_size=size)
        if logits.shape[1] > 5:
            top5 = (logits.topk(5, dim=1).indices == target[:, None]).any(1).float().mean()
            self.log("test/accuracy_top5", top5, on_epoch=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(
            self.model, self.settings, self.steps_per_epoch, backbone=self.model
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _mixing(num_classes: int, mixup: float, cutmix: float) -> nn.Module | None:
    """Mixup, cutmix, or one of the two for each batch; None where both are off."""
    parts: list[nn.Module] = []
    if mixup > 0:
        parts.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix > 0:
        parts.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    if len(parts) == 2:
        return v2.RandomChoice(parts)
    return parts[0] if parts else None


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """Running average whose decay grows with the updates, so that short runs forget the start."""

    def average(mean: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        steps = float(count)
        weight = min(decay, (1.0 + steps) / (10.0 + steps))
        return torch.lerp(current, mean, weight)

    averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=average, use_buffers=False)
    averaged.requires_grad_(False)
    return averaged
