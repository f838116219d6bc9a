"""Attention of one block, kept window by window, and its place on the token grid.

Shapes: B images, W windows, H heads, K tokens in a window, N tokens of the block (prefix tokens
first, then the grid row by row).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_FUSIONS = ("mean", "max", "min")


def fuse_heads(attention: Tensor, head_fusion: str, dim: int) -> Tensor:
    """Reduce the head dimension ``dim`` by ``head_fusion``: "mean", "max" or "min".

    Raises:
        ValueError: another ``head_fusion``.
    """
    if head_fusion == "mean":
        return attention.mean(dim)
    if head_fusion == "max":
        return attention.amax(dim)
    if head_fusion == "min":
        return attention.amin(dim)
    raise ValueError(
        f"head fusion {head_fusion!r} is not known; choose one of {', '.join(HEAD_FUSIONS)}"
    )


@dataclass(frozen=True)
class AttentionMap:
    """Post-softmax attention inside windows; global attention is the case of one window.

    Attributes:
        probabilities: (B, W, H, K, K); rows (queries) sum to 1 over the keys of the window.
        token_index: (W, K), token id of each window slot, on the unshifted grid; -1 marks padding.
        reachable: (W, K, K), True where the attention mask lets the query see the key.
        tokens: N, the number of tokens of the block, prefix tokens included.
    """

    probabilities: Tensor
    token_index: Tensor
    reachable: Tensor
    tokens: int

    @property
    def heads(self) -> int:
        return self.probabilities.shape[2]

    def fused(self, head_fusion: str) -> AttentionMap:
        """The same map with its heads fused into one (see :func:`fuse_heads`)."""
        fused = fuse_heads(self.probabilities, head_fusion, 2).unsqueeze(2)
        return AttentionMap(fused, self.token_index, self.reachable, self.tokens)

    def dense(self) -> Tensor:
        """Scatter the windows to one matrix per head: (B, H, N, N).

        Keys outside a token's window get 0. Padded slots are dropped and the attention that they
        got is shared out over the other keys, so that every row keeps its sum.
        """
        real_WK = self.token_index >= 0
        values_BWHKK = self.probabilities
        if not bool(real_WK.all()):
            whole_BWHK1 = values_BWHKK.sum(-1, keepdim=True)
            values_BWHKK = values_BWHKK * real_WK[:, None, None, :]
            kept_BWHK1 = values_BWHKK.sum(-1, keepdim=True)
            tiny = torch.finfo(values_BWHKK.dtype).tiny
            values_BWHKK = values_BWHKK * (whole_BWHK1 / kept_BWHK1.clamp_min(tiny))
        batch, _, heads, _, _ = values_BWHKK.shape
        # Padding lands in one spare row and column, cut off at the end.
        index_WK = self.token_index.where(real_WK, self.tokens)
        dense_BHNN = values_BWHKK.new_zeros(batch, heads, self.tokens + 1, self.tokens + 1)
        dense_BHNN[:, :, index_WK[:, :, None], index_WK[:, None, :]] = values_BWHKK.transpose(1, 2)
        return dense_BHNN[..., :-1, :-1]


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
