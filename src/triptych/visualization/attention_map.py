"""Attention of one block, kept as the layer computes it, and its place on the token grid.

Shapes: B images, W windows, H heads, Q queries and K keys of a window, N tokens of the block
(prefix tokens first, then the grid row by row), S sources of the keys, M tokens that the keys are
made of (the block's own N, but for a layer that shrinks its grid).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_FUSIONS = ("mean", "max", "min")


def fuse_heads(attention: Tensor, head_fusion: str, dim: int) -> Tensor:
    """Reduce the head dimension ``dim`` by ``head_fusion``: "mean", "max" or "min".

    Raises:
        ValueError: another ``head_fusion``.
    """
    check_head_fusion(head_fusion)
    if head_fusion == "mean":
        return attention.mean(dim)
    return attention.amax(dim) if head_fusion == "max" else attention.amin(dim)


def check_head_fusion(head_fusion: str) -> None:
    if head_fusion not in HEAD_FUSIONS:
        raise ValueError(
            f"head fusion {head_fusion!r} is not known; choose one of {', '.join(HEAD_FUSIONS)}"
        )


@dataclass(frozen=True)
class AttentionMap:
    """Post-softmax attention inside windows; global attention is the case of one window.

    Attributes:
        probabilities: (B, W, H, Q, K); rows (queries) sum to 1 over the keys of the window.
        token_index: (W, Q), token id of each query, on the unshifted grid; -1 marks padding.
        reachable: (W, Q, K), True where the attention mask lets the query see the key.
        tokens: N, the number of tokens of the block, prefix tokens included.
        key_index: (W, K), source of each key, -1 for padding; None: keys are the queries' tokens.
        sources: S, the number of sources; None: as many as tokens.
        spread: (S, M), the share of each token in each source, rows sum to 1, where keys are
            reductions of several tokens (spatial reduction); None: each source is a token.
    """

    probabilities: Tensor
    token_index: Tensor
    reachable: Tensor
    tokens: int
    key_index: Tensor | None = None
    sources: int | None = None
    spread: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.probabilities.shape[2]

    @property
    def keys(self) -> Tensor:
        """(W, K), the source of each key; -1 is padding."""
        return self.token_index if self.key_index is None else self.key_index

    def fused(self, head_fusion: str) -> AttentionMap:
        """The same map with its heads fused into one (see :func:`fuse_heads`)."""
        fused = fuse_heads(self.probabilities, head_fusion, 2).unsqueeze(2)
        return replace(self, probabilities=fused)

    def to(self, device: torch.device | str) -> AttentionMap:
        """The same map with all its tensors on ``device``."""
        return AttentionMap(
            self.probabilities.to(device),
            self.token_index.to(device),
            self.reachable.to(device),
            self.tokens,
            None if self.key_index is None else self.key_index.to(device),
            self.sources,
            None if self.spread is None else self.spread.to(device),
        )

    def dense(self) -> Tensor:
        """Scatter the windows to one matrix per head: (B, H, N, M).

        Keys outside a token's window get 0. Padded keys are dropped and the attention that they
        got is shared out over the other keys, so that every row keeps its sum. A reduced key is
        shared out over its tokens by ``spread``.
        """
        real_WK = self.keys >= 0
        values_BWHQK = self.probabilities
        if not bool(real_WK.all()):
            whole_BWHQ1 = values_BWHQK.sum(-1, keepdim=True)
            values_BWHQK = values_BWHQK * real_WK[:, None, None, :]
            kept_BWHQ1 = values_BWHQK.sum(-1, keepdim=True)
            tiny = torch.finfo(values_BWHQK.dtype).tiny
            values_BWHQK = values_BWHQK * (whole_BWHQ1 / kept_BWHQ1.clamp_min(tiny))
        return self.scatter(values_BWHQK)

    def scatter(self, values: Tensor) -> Tensor:
        """Any ``values`` of this map's pairs, (B, W, H, Q, K), as matrices (B, H, N, M).

        Padding is dropped, nothing is shared out; as for :meth:`dense`, ``spread`` is applied.
        """
        sources = self.tokens if self.sources is None else self.sources
        batch, _, heads, _, _ = values.shape
        # Padding lands in one spare row and column, cut off at the end.
        rows_WQ = self.token_index.where(self.token_index >= 0, self.tokens)
        cols_WK = self.keys.where(self.keys >= 0, sources)
        dense_BHNS = values.new_zeros(batch, heads, self.tokens + 1, sources + 1)
        dense_BHNS[:, :, rows_WQ[:, :, None], cols_WK[:, None, :]] = values.transpose(1, 2)
        dense_BHNS = dense_BHNS[..., :-1, :-1]
        return dense_BHNS if self.spread is None else dense_BHNS @ self.spread.to(dense_BHNS)


def window_token_index(
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """Token ids (W, K) of the windows of a (shifted) window attention on ``grid``.

    Windows are cut from the grid rolled by ``-shift`` and padded at the bottom and the right to
    whole windows, as in Swin; ids count the unshifted grid row by row, -1 is padding.
    """
    rows, cols = grid
    index = torch.arange(rows * cols, device=device).view(rows, cols)
    index = index.roll((-shift[0], -shift[1]), dims=(0, 1))
    index = F.pad(index, (0, -cols % window[1], 0, -rows % window[0]), value=-1)
    tall, wide = index.shape[0] // window[0], index.shape[1] // window[1]
    index = index.view(tall, window[0], wide, window[1]).transpose(1, 2)
    return index.reshape(tall * wide, window[0] * window[1])
