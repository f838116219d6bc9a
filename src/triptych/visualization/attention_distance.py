"""How far, and how evenly, the heads of each block look.

Mean attention distance of a head: Σ_k A[q, k]·‖p_q − p_k‖₂, averaged over the grid tokens q.
Prefix tokens have no place and padding no content, so neither is a query or a key here. The raw
form leaves their mass out; the renormalised form shares it out over the grid keys.

Shapes: B images, W windows, H heads, Q queries and K keys of a window, N grid tokens, M tokens that
keys are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.visualization.attention_map import AttentionMap
from triptych.visualization.capture import BlockCapture, Capture


@dataclass(frozen=True)
class BlockDistances:
    """Distances and entropy of one block, each (B, H) except the uniform values.

    Attributes:
        name, stage: as in the block's capture.
        raw_steps, renormalised_steps: in patch steps of the block's own grid.
        raw_pixels, renormalised_pixels: in pixels of the image, comparable between stages.
        entropy: of the rows over all their keys, in nats.
        uniform_steps, uniform_pixels: what equal attention to every reachable grid token gives.
    """

    name: str
    stage: int
    raw_steps: Tensor
    renormalised_steps: Tensor
    raw_pixels: Tensor
    renormalised_pixels: Tensor
    entropy: Tensor
    uniform_steps: float
    uniform_pixels: float


def token_positions(grid: tuple[int, int], stride: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Positions (N, 2) of the grid tokens, row by row, in units of ``stride`` per step."""
    rows = torch.arange(grid[0], dtype=torch.float32) * stride[0]
    cols = torch.arange(grid[1], dtype=torch.float32) * stride[1]
    return torch.cartesian_prod(rows, cols)


def token_distances(grid: tuple[int, int], stride: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Euclidean distances (N, N) between the tokens of ``grid``, in units of ``stride``."""
    positions_N2 = token_positions(grid, stride)
    return (positions_N2[:, None] - positions_N2[None]).square().sum(-1).sqrt()


def uniform_distance(grid: tuple[int, int], stride: tuple[float, float] = (1.0, 1.0)) -> float:
    """Mean attention distance of uniform attention over the whole grid (7.281 on 14 x 14)."""
    return token_distances(grid, stride).mean().item()


def mean_attention_distance(
    attention: Tensor,
    grid: tuple[int, int],
    *,
    prefix_tokens: int = 0,
    stride: tuple[float, float] = (1.0, 1.0),
    renormalise: bool = False,
) -> Tensor:
    """Mean attention distance (B, H) of dense post-softmax ``attention`` (B, H, P + N, P + N).

    Args:
        attention: rows are queries; the first ``prefix_tokens`` (P) tokens have no place.
        grid: (rows, columns) of the remaining N tokens.
        stride: (height, width) of a step; (1, 1) gives patch steps, the patch size gives pixels.
        renormalise: share the mass of the prefix tokens out over the grid keys of each query.

    Raises:
        ValueError: the number of tokens is not P + rows·columns.
    """
    tokens = prefix_tokens + grid[0] * grid[1]
    if attention.ndim != 4 or attention.shape[-2:] != (tokens, tokens):
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}; {prefix_tokens} prefix tokens and a "
            f"grid of {grid[0]}x{grid[1]} need (images, heads, {tokens}, {tokens})"
        )
    grid_BHNN = attention[..., prefix_tokens:, prefix_tokens:]
    if renormalise:
        grid_BHNN = grid_BHNN / grid_BHNN.sum(-1, keepdim=True)
    return (grid_BHNN * token_distances(grid, stride).to(attention)).sum(-1).mean(-1)


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of the rows of ``attention`` (..., queries, keys), averaged over queries."""
    return torch.special.entr(attention).sum(-1).mean(-1)


def attention_distances(captured: Capture) -> tuple[BlockDistances, ...]:
    """Distances and entropy of every block, without forming dense matrices for windows.

    In steps of the keys' grid. Distances to a reduced key are means over its tokens.

    Raises:
        ValueError: the capture holds no attention, or of visible tokens alone.
    """
    return tuple(_block_distances(block) for block in captured.blocks)


def _block_distances(block: BlockCapture) -> BlockDistances:
    attention, prefix = block.attention_map, block.prefix_tokens
    if block.visible is not None:
        raise ValueError(
            f"block {block.name} ran on visible tokens alone, whose distances depend on the mask; "
            "capture the backbone itself"
        )
    valid_WQ = attention.token_index >= prefix
    # Keys made of several tokens have no prefix token among them.
    valid_WK = attention.keys >= (prefix if attention.spread is None else 0)
    pairs_WQK = valid_WK[:, None, :] & valid_WQ[:, :, None]
    grid_BWHQK = attention.probabilities * pairs_WQK[:, None]
    mass = grid_BWHQK.sum(-1, keepdim=True).clamp_min(torch.finfo(grid_BWHQK.dtype).tiny)
    renormalised_BWHQK = grid_BWHQK / mass
    uniform_WQK = (attention.reachable & pairs_WQK).to(grid_BWHQK.dtype)
    uniform_WQK = uniform_WQK / uniform_WQK.sum(-1, keepdim=True).clamp_min(1)

    def distance(probabilities: Tensor, stride: tuple[float, float]) -> Tensor:
        distances_WQK = _pair_distances(block, stride).to(probabilities)
        heads_first = probabilities.movedim(-3, 0)
        per_query = (heads_first * distances_WQK).sum(-1)
        return (per_query.sum((-1, -2)) / valid_WQ.sum()).movedim(0, -1)

    steps, pixels = (1.0, 1.0), _key_stride(block)
    uniform_1WHQK = uniform_WQK[None, :, None]
    return BlockDistances(
        name=block.name,
        stage=block.stage,
        raw_steps=distance(grid_BWHQK, steps),
        renormalised_steps=distance(renormalised_BWHQK, steps),
        raw_pixels=distance(grid_BWHQK, pixels),
        renormalised_pixels=distance(renormalised_BWHQK, pixels),
        entropy=_entropy_of_tokens(attention),
        uniform_steps=distance(uniform_1WHQK, steps).item(),
        uniform_pixels=distance(uniform_1WHQK, pixels).item(),
    )


def _key_stride(block: BlockCapture) -> tuple[float, float]:
    """Pixels of a step on the grid of the keys."""
    fine = block.key_grid or block.grid
    return tuple(block.stride[axis] * block.grid[axis] / fine[axis] for axis in (0, 1))  # type: ignore[return-value]


def _pair_distances(block: BlockCapture, stride: tuple[float, float]) -> Tensor:
    """Distances (W, Q, K) in units of ``stride``; of a reduced key, the mean over its tokens."""
    attention, prefix = block.attention_map, block.prefix_tokens
    places_M2 = token_positions(block.key_grid or block.grid, stride)
    if block.key_grid is None:
        places_N2 = places_M2
    else:  # a shrinking layer asks from every second token
        step = (2 * stride[0], 2 * stride[1])
        places_N2 = token_positions(block.grid, step)
    queries_WQ2 = places_N2[(attention.token_index.cpu() - prefix).clamp_min(0)]
    if attention.spread is None:
        keys_WK2 = places_M2[(attention.keys.cpu() - prefix).clamp_min(0)]
        return (queries_WQ2[:, :, None] - keys_WK2[:, None]).square().sum(-1).sqrt()
    to_tokens_WQM = (queries_WQ2[:, :, None] - places_M2).square().sum(-1).sqrt()
    return to_tokens_WQM @ attention.spread.cpu().to(to_tokens_WQM).T


def _entropy_of_tokens(attention: AttentionMap) -> Tensor:
    """Entropy over all keys of the window, averaged over real queries (prefix included): (B, H)."""
    per_query_BWHQ = torch.special.entr(attention.probabilities).sum(-1)
    real_WQ = attention.token_index >= 0
    return (per_query_BWHQ * real_WQ[:, None]).sum((1, 3)) / real_WQ.sum()


def distance_rows(captured: Capture) -> list[dict[str, object]]:
    """One row per block (``layer``, from 1) and head, means over images (steps, pixels, nats)."""
    rows: list[dict[str, object]] = []
    for captured_block, block in zip(captured.blocks, attention_distances(captured), strict=True):
        for head in range(block.entropy.shape[1]):
            rows.append(
                {
                    "layer": captured_block.index + 1,
                    "block": block.name,
                    "stage": block.stage,
                    "head": head,
                    "distance_steps": block.raw_steps[:, head].mean().item(),
                    "distance_renormalised_steps": block.renormalised_steps[:, head].mean().item(),
                    "uniform_steps": block.uniform_steps,
                    "distance_pixels": block.raw_pixels[:, head].mean().item(),
                    "distance_renormalised_pixels": (
                        block.renormalised_pixels[:, head].mean().item()
                    ),
                    "uniform_pixels": block.uniform_pixels,
                    "entropy_nats": block.entropy[:, head].mean().item(),
                }
            )
    return rows
