"""Which part of every batch a process computes, and that the parts add up to the whole.

``world_size`` processes share a batch, each its own in ``pieces`` that follow each other. All that
is drawn for a sample is then what it is when one process computes the whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.callbacks import Callback
from timm.layers import DropPath
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """Process ``rank`` of ``world_size`` on this machine, which meet at ``port``."""

    rank: int = 0
    world_size: int = 1
    pieces: int = 1
    port: int = 0

    @property
    def parts(self) -> int:
        """Parts of a batch that are computed apart."""
        return self.world_size * self.pieces


class Meeting(ClusterEnvironment):
    """Tells Lightning what a share says; the processes are there already."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self.share.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.share.world_size

    def set_world_size(self, size: int) -> None:
        assert size == self.share.world_size

    def global_rank(self) -> int:
        return self.share.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.share.rank

    def local_rank(self) -> int:
        return self.share.rank

    def node_rank(self) -> int:
        return 0


class PartOfBatch(Callback):
    """Knows which part of the batch is being computed; ``part`` counts from 0 to ``parts`` − 1."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.parts, self.part = share.parts, 0

    def on_train_batch_start(self, _t: pl.Trainer, _m: Any, _b: Any, batch_idx: int) -> None:
        self.part = self.share.rank * self.share.pieces + batch_idx % self.share.pieces


class SharedDropPath(DropPath):
    """Stochastic depth that draws for the whole batch and uses its own part of what it drew."""

    def __init__(self, former: DropPath, place: PartOfBatch) -> None:
        super().__init__(former.drop_prob, former.scale_by_keep)
        # Not a module: it must neither be moved nor saved.
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        keep, own = 1 - self.drop_prob, len(x)
        shape = (own * self.place.parts,) + (1,) * (x.ndim - 1)
        kept = x.new_empty(shape).bernoulli_(keep)[own * self.place.part :][:own]
        if keep > 0 and self.scale_by_keep:
            kept = kept / keep
        return x * kept


def share_drop_paths(model: nn.Module, place: PartOfBatch) -> int:
    """Make all stochastic depth of ``model`` draw as one process would; returns how many."""
    found = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath) and not isinstance(child, SharedDropPath):
                shared = SharedDropPath(child, place)
                shared.training = child.training
                setattr(module, name, shared)
                found += 1
    return found
