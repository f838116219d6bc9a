"""How each kind of attention layer makes its probabilities, computed again from its projections.

A fused kernel never forms the attention matrix. Each reader names the modules whose outputs are
the queries, keys and values, and the module that is given the product, and rebuilds both from
there in float32 (float64 for a float64 model).

Shapes: B images, N tokens, C channels, H heads, W windows, Q queries and K keys of a window, D
channels of a head, R = B·W rows of Swin's window attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triptych.visualization.attention_map import AttentionMap, window_token_index
from triptych.visualization.block_layout import BlockLayout
from triptych.visualization.stage_reduction import Reduction, pooling_bins

Kept = Mapping[str, Tensor]


class AttentionReader(ABC):
    """Reads one attention layer.

    Attributes:
        sources: name to module whose output is needed.
        product: module whose input is the attention's product with the values.
    """

    sources: dict[str, nn.Module]
    product: nn.Module

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout
        self.layer: Any = layout.attention

    @abstractmethod
    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, W, H, Q or K, D)."""

    @abstractmethod
    def arranged(self, product: Tensor) -> Tensor:
        """The product (B, W, H, Q, D) as the layer hands it on."""

    def bias(self, kept: Kept) -> Tensor | None:
        """What is added to the scores, broadcastable to (B, W, H, Q, K)."""
        return None

    def probabilities(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """(B, W, H, Q, K)."""
        scores = query * self.layer.scale @ key.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(-1)

    def attend(self, kept: Kept) -> tuple[Tensor, Tensor, float]:
        """Probabilities (B, W, H, Q, K), the product as handed on, and the largest value."""
        query, key, value = (_wide(one) for one in self.projections(kept))
        with torch.autocast(query.device.type, enabled=False):
            bias = self.bias(kept)
            probabilities = self.probabilities(query, key, None if bias is None else bias.to(query))
            product = self.arranged(probabilities @ value)
        return probabilities, product, value.detach().abs().max().item()

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        """The probabilities with their place on the grid; by default one window of all tokens."""
        tokens = int(probabilities.shape[-2])
        index_1N = torch.arange(tokens, device=probabilities.device)[None]
        return AttentionMap(probabilities, index_1N, _all_reachable(probabilities), tokens)


class PlainReader(AttentionReader):
    """timm's Attention: global, one ``qkv``."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {"qkv": self.layer.qkv}
        # It may norm and gate its output before the projection.
        self.product = self.layer.norm

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BN3HD = kept["qkv"].unflatten(-1, (3, self.layer.num_heads, -1))
        query, key, value = qkv_BN3HD.permute(2, 0, 3, 1, 4)[:, :, None]
        return self.layer.q_norm(query), self.layer.k_norm(key), value

    def arranged(self, product: Tensor) -> Tensor:
        return merge_heads(product[:, 0])


class SwinReader(AttentionReader):
    """Swin's window attention with relative position bias and the mask of shifted windows."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {"qkv": self.layer.qkv}
        self.product = self.layer.proj

    def _windows(self) -> Tensor:
        grid, window = self.layout.grid, self.layout.window
        assert window is not None
        device = self.layer.qkv.weight.device
        return window_token_index(grid, window, self.layout.shift, device)

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        qkv_RK3HD = kept["qkv"].unflatten(-1, (3, self.layer.num_heads, -1))
        qkv = qkv_RK3HD.unflatten(0, (-1, len(self._windows())))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        return query, key, value

    def bias(self, kept: Kept) -> Tensor:
        table_KKH = self.layer.relative_position_bias_table[self.layer.relative_position_index]
        bias_HKK = table_KKH.permute(2, 0, 1)
        return bias_HKK + kept["mask"][:, None] if "mask" in kept else bias_HKK

    def arranged(self, product: Tensor) -> Tensor:
        return merge_heads(product.flatten(0, 1))

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        index_WK = self._windows()
        reachable = kept["mask"] == 0 if "mask" in kept else _all_reachable(probabilities)
        tokens = self.layout.grid[0] * self.layout.grid[1]
        return AttentionMap(probabilities, index_WK, reachable, tokens)


class LocallyGroupedReader(AttentionReader):
    """Locally-grouped attention of Twins: windows without bias, zero tokens as padding."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {"qkv": self.layer.qkv}
        self.product = self.layer.proj

    def _windows(self) -> Tensor:
        side = int(self.layer.ws)
        device = self.layer.qkv.weight.device
        return window_token_index(self.layout.grid, (side, side), (0, 0), device)

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BWKE = kept["qkv"].flatten(1, 2).flatten(2, 3)
        qkv_BWK3HD = qkv_BWKE.unflatten(-1, (3, self.layer.num_heads, -1))
        query, key, value = qkv_BWK3HD.permute(3, 0, 1, 4, 2, 5)
        return query, key, value

    def arranged(self, product: Tensor) -> Tensor:
        product_BSC = merge_heads(product).flatten(1, 2)
        slot_S = self._windows().flatten()
        real_S = slot_S >= 0
        order_N = slot_S[real_S].argsort()
        return product_BSC[:, real_S][:, order_N]

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        tokens = self.layout.grid[0] * self.layout.grid[1]
        return AttentionMap(probabilities, self._windows(), _all_reachable(probabilities), tokens)


class ReducedReader(AttentionReader):
    """Spatial-reduction attention of PVT, PVT v2 and Twins: fewer keys than queries."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self.sources = {"query": self.layer.q, "kv": self.layer.kv}
        self.product = self.layer.proj

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.layer.num_heads
        query = kept["query"].unflatten(-1, (heads, -1)).transpose(1, 2)
        kv_BK2HD = kept["kv"].unflatten(-1, (2, heads, -1))
        key, value = kv_BK2HD.permute(2, 0, 3, 1, 4)
        return query[:, None], key[:, None], value[:, None]

    def arranged(self, product: Tensor) -> Tensor:
        return merge_heads(product[:, 0])

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        place = super().placed(probabilities, kept)
        spread = self._spread()
        if spread is None:
            return place
        device = probabilities.device
        key_index = torch.arange(len(spread), device=device)[None]
        return AttentionMap(
            probabilities,
            place.token_index,
            place.reachable,
            place.tokens,
            key_index=key_index,
            sources=len(spread),
            spread=spread.to(device),
        )

    def _spread(self) -> Tensor | None:
        """Share of each token in each reduced key, or None where keys are tokens.

        Uniform: an approximation, because the learned reduction is not uniform.
        """
        pool, grid = getattr(self.layer, "pool", None), self.layout.grid
        if pool is not None:
            return pooling_bins(grid, int(pool.output_size))
        if self.layer.sr is None:
            return None
        side, step = self.layer.sr.kernel_size, self.layer.sr.stride
        coarse = ((grid[0] - side[0]) // step[0] + 1, (grid[1] - side[1]) // step[1] + 1)
        return Reduction(side, step).matrix(grid, coarse)


def _all_reachable(probabilities: Tensor) -> Tensor:
    _, windows, _, queries, keys = probabilities.shape
    return torch.ones(windows, queries, keys, dtype=torch.bool, device=probabilities.device)


def merge_heads(product: Tensor) -> Tensor:
    """Heads side by side: (..., H, Q, D) to (..., Q, H·D)."""
    return product.transpose(-3, -2).flatten(-2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
