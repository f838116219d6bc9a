"""The one-head attention of T2T-ViT's tokens-to-token stages, for attention capture.

Shapes: B images, N tokens, E channels.
"""

from __future__ import annotations

from torch import Tensor

from triptych.visualization.attention_layers import AttentionReader, Kept
from triptych.visualization.block_layout import BlockLayout


class TokenReader(AttentionReader):
    """Full attention; the layer adds the values to its output, as a skip connection does."""

    projection = "qkv"

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {"qkv": getattr(self.layer, self.projection)}
        self.product = self.layer.proj

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = kept["qkv"][:, None, None].chunk(3, -1)
        return query, key, value

    def arranged(self, product: Tensor) -> Tensor:
        return product[:, 0, 0]


class PerformerReader(TokenReader):
    """Performer attention: the matrix that its random features stand for, φ(q)·φ(k) by rows."""

    projection = "kqv"

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        key, query, value = kept["qkv"][:, None, None].chunk(3, -1)
        return query, key, value

    def probabilities(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        weights = self.layer.features(query) @ self.layer.features(key).transpose(-2, -1)
        # The layer's own guard against a division by 0.
        return weights / (weights.sum(-1, keepdim=True) + 1e-8)
