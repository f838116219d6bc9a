"""Test metrics of an epoch, each sample counted once over all processes.

Lightning's own means over processes round the number of samples of each.
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor


class Tally:
    """Sums of loss, hits and hits among the first five, and the samples behind them."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.classes = 0

    def add(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Count the samples of a batch."""
        self.classes = logits_BK.shape[1]
        top = logits_BK.topk(min(5, self.classes), dim=1).indices == labels_B[:, None]
        loss = F.cross_entropy(logits_BK, labels_B, reduction="sum")
        size = torch.full_like(loss, len(labels_B))
        sums = torch.stack([loss, top[:, 0].sum(), top.any(1).sum(), size]).double()
        self.sums = sums if self.sums is None else self.sums + sums

    def log(self, module: pl.LightningModule) -> None:
        """Log the means over all processes, and begin anew."""
        assert self.sums is not None
        sums = module.trainer.strategy.reduce(self.sums, reduce_op="sum")
        loss, hits, near, count = sums.tolist()
        values = {"test/accuracy": hits / count, "test/loss": loss / count}
        if self.classes > 5:
            values["test/accuracy_top5"] = near / count
        for name, value in values.items():
            module.log(name, value, on_epoch=True, sync_dist=True)
        self.sums = None
