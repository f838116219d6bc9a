"""LeViT's attention, within a stage and from one stage to the next, for attention capture.

Shapes: B images, N tokens, H heads, Q queries, K keys, D channels of a head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from triptych.visualization.attention_layers import AttentionReader, Kept, merge_heads
from triptych.visualization.attention_map import AttentionMap
from triptych.visualization.block_layout import BlockLayout


class LevitReader(AttentionReader):
    """LeViT's attention with a bias for each offset."""

    names: ClassVar[dict[str, str]] = {"qkv": "qkv"}

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {kept: getattr(self.layer, name) for kept, name in self.names.items()}
        self.product = self.layer.proj

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        narrow, wide = self.layer.key_dim, self.layer.val_dim
        query, key, value = self._heads(kept["qkv"]).split([narrow, narrow, wide], -1)
        return query, key, value

    def _heads(self, x_BNC: Tensor) -> Tensor:
        """(B, 1, H, N, D)."""
        return x_BNC.unflatten(-1, (self.layer.num_heads, -1)).transpose(1, 2)[:, None]

    def bias(self, kept: Kept) -> Tensor:
        return self.layer.attention_biases[:, self.layer.attention_bias_idxs]

    def arranged(self, product: Tensor) -> Tensor:
        return merge_heads(product[:, 0])


class LevitShrinkingReader(LevitReader):
    """LeViT's attention between stages: every second token asks, all tokens answer."""

    names: ClassVar[dict[str, str]] = {"query": "q", "kv": "kv"}

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        key, value = self._heads(kept["kv"]).split([self.layer.key_dim, self.layer.val_dim], -1)
        return self._heads(kept["query"]), key, value

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        queries, keys = probabilities.shape[-2:]
        device = probabilities.device
        return AttentionMap(
            probabilities,
            torch.arange(queries, device=device)[None],
            torch.ones(1, queries, keys, dtype=torch.bool, device=device),
            queries,
            key_index=torch.arange(keys, device=device)[None],
            sources=keys,
        )
