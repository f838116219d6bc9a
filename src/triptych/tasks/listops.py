"""Long ListOps: ten-way classification of token sequences, trained from scratch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.tasks.optimization import OptimizerSettings, build_optimizer
from triptych.tasks.tally import Tally


class ListOpsModule(pl.LightningModule):
    """Cross-entropy of the answers; a batch is (tokens (B, N), answers (B,), indices (B,)).

    ``model`` maps token ids (B, N) to logits (B, num_classes).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        *,
        steps_per_epoch: int,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.label_smoothing = label_smoothing
        self.tally = Tally()

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts."""
        return self.model

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        tokens, answers, _indices = batch
        return F.cross_entropy(self.model(tokens), answers, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        tokens, answers, _indices = batch
        self.tally.add(self.model(tokens), answers)

    def on_validation_epoch_end(self) -> None:
        self.tally.log(self)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.model, self.settings, self.steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
