"""Relevance for a class: gradient rollout and the generic rule for attention.

Both weigh attention by the gradient of the class score before it is composed through the blocks;
windows, reduced keys and stages are handled as in
:func:`triptych.visualization.rollout.rollout_to_input`.

Shapes: B images, H heads, N tokens of a block, M tokens of the first stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.visualization.attention_gradients import GradientCapture
from triptych.visualization.capture import BlockCapture
from triptych.visualization.rollout import (
    discard_lowest,
    enter_block,
    mixing_matrix,
    relevance_of_head,
    source_tokens,
)

_Step = Callable[[Tensor, BlockCapture], tuple[Tensor, Tensor]]


def gradient_rollout(graded: GradientCapture, *, discard: float = 0.0) -> Tensor:
    """Rollout of attention times its gradient down to the first stage, (B, N, M) after all blocks.

    Of each block relu(mean over heads of A ⊙ ∇A), the smallest ``discard`` of it set to 0, then
    the identity added and rows normalised (vit-explain, whose division goes along the wrong axis).

    Raises:
        ValueError: ``discard`` is not in [0, 1).
    """
    return _composed(graded, _gradient_step(discard))[0]


def generic_relevance(graded: GradientCapture) -> Tensor:
    """R ← R + mean over heads of relu(∇A ⊙ A) · R from the identity, (B, N, M) after all blocks.

    Chefer, Gur and Wolf 2021 (arXiv 2103.15679), section 3; no row is normalised. A layer without
    a skip connection, which shrinks the grid, adds no R.
    """
    return _composed(graded, _generic_step)[0]


def class_relevance(graded: GradientCapture, *, rule: str = "generic") -> Tensor:
    """Relevance of each image region for the target class, (B, rows, cols) of the first stage.

    What a token keeps of itself through all skip connections, and no attention touched, is left
    out, as the class token's own column is: it would be an even share of every region where the
    head averages the grid.

    Args:
        rule: "generic" or "gradient_rollout".

    Raises:
        ValueError: another rule.
    """
    rules = {"generic": _generic_step, "gradient_rollout": _gradient_step(0.0)}
    if rule not in rules:
        raise ValueError(f"rule {rule!r} is not known; choose one of {', '.join(rules)}")
    whole_BNM, skipped_BNM = _composed(graded, rules[rule])
    return relevance_of_head(whole_BNM - skipped_BNM, graded.captured).clamp_min(0)


def weighted_attention(graded: GradientCapture) -> tuple[Tensor, ...]:
    """A ⊙ ∇A of each block as dense matrices, (B, H, N, M)."""
    blocks = graded.captured.whole()
    return tuple(
        block.attention_map.scatter(block.attention_map.probabilities * gradient)
        for block, gradient in zip(blocks, graded.gradients, strict=True)
    )


def _generic_step(weighted_BHNM: Tensor, block: BlockCapture) -> tuple[Tensor, Tensor]:
    passed_BNM = weighted_BHNM.relu().mean(1)
    if block.key_grid is not None:
        return passed_BNM, passed_BNM.new_zeros(passed_BNM.shape[:2])
    eye = torch.eye(passed_BNM.shape[-1], dtype=passed_BNM.dtype, device=passed_BNM.device)
    return passed_BNM + eye, passed_BNM.new_ones(passed_BNM.shape[:2])


def _gradient_step(discard: float) -> _Step:
    if not 0 <= discard < 1:
        raise ValueError(f"discard is {discard}; give a fraction from 0 up to, not including, 1")

    def step(weighted_BHNM: Tensor, block: BlockCapture) -> tuple[Tensor, Tensor]:
        fused_BNM = discard_lowest(weighted_BHNM.mean(1).relu(), discard, keep_first=False)
        if block.key_grid is not None:
            return _rows_to_one(fused_BNM), fused_BNM.new_zeros(fused_BNM.shape[:2])
        return mixing_matrix(fused_BNM, residual=True), 1 / (1 + fused_BNM.sum(-1))

    return step


def _composed(graded: GradientCapture, step: _Step) -> tuple[Tensor, Tensor]:
    """All blocks' mixing composed, (B, N, M), and the part of it that took every skip connection.

    ``step`` gives a block's mixing matrix (B, N, M) and the weight (B, N) of its skip connection.
    """
    blocks = graded.captured.whole()
    whole = skipped = source_tokens(graded.captured)[None]
    for index, (block, weighted) in enumerate(zip(blocks, weighted_attention(graded), strict=True)):
        mixing_BNM, skip_BN = step(weighted, block)
        if index == 0:
            whole = skipped = whole.to(weighted).expand(len(weighted), -1, -1)
        else:
            before = blocks[index - 1]
            whole, skipped = (enter_block(one, before, block) for one in (whole, skipped))
        whole = mixing_BNM @ whole
        # Attention that shrinks the grid has no skip connection round it.
        shrinks = block.key_grid is not None
        skipped = torch.zeros_like(whole) if shrinks else skipped * skip_BN[..., None]
    return whole, skipped


def _rows_to_one(fused: Tensor) -> Tensor:
    """Rows that sum to 1; a row without any weight is shared out evenly."""
    even = torch.full_like(fused, 1 / fused.shape[-1])
    total = fused.sum(-1, keepdim=True)
    return torch.where(total > 0, fused / total.clamp_min(torch.finfo(fused.dtype).tiny), even)
