"""How far, and how evenly, the heads of each block look.

Mean attention distance of a head: Σ_k A[q, k]·‖p_q − p_k‖₂, averaged over the grid tokens q.
Prefix tokens have no place and padding no content, so neither is a query or a key here. The raw
form leaves their mass out; the renormalised form shares it out over the grid keys.

Shapes: B images, W windows, H heads, K tokens in a window, N grid tokens.
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

    Raises:
        ValueError: the capture holds no attention.
    """
    return tuple(_block_distances(block, captured.prefix_tokens) for block in captured.blocks)


def _block_distances(block: BlockCapture, prefix: int) -> BlockDistances:
    attention = block.attention_map
    valid_WK = attention.token_index >= prefix
    keys_WKK = valid_WK[:, None, :] & valid_WK[:, :, None]
    grid_BWHKK = attention.probabilities * keys_WKK[:, None]
    mass = grid_BWHKK.sum(-1, keepdim=True).clamp_min(torch.finfo(grid_BWHKK.dtype).tiny)
    renormalised_BWHKK = grid_BWHKK / mass
    uniform_WKK = (attention.reachable & keys_WKK).to(grid_BWHKK.dtype)
    uniform_WKK = uniform_WKK / uniform_WKK.sum(-1, keepdim=True).clamp_min(1)

    def distance(probabilities: Tensor, stride: tuple[float, float]) -> Tensor:
        positions_N2 = token_positions(block.grid, stride).to(probabilities)
        slots_WK2 = positions_N2[(attention.token_index - prefix).clamp_min(0)]
        offsets = slots_WK2[:, :, None] - slots_WK2[:, None]
        distances_WKK = offsets.square().sum(-1).sqrt()
        heads_first = probabilities.movedim(-3, 0)
        per_query = (heads_first * distances_WKK).sum(-1)
        return (per_query.sum((-1, -2)) / valid_WK.sum()).movedim(0, -1)

    steps, pixels = (1.0, 1.0), (float(block.stride[0]), float(block.stride[1]))
    uniform_1WHKK = uniform_WKK[None, :, None]
    return BlockDistances(
        name=block.name,
        stage=block.stage,
        raw_steps=distance(grid_BWHKK, steps),
        renormalised_steps=distance(renormalised_BWHKK, steps),
        raw_pixels=distance(grid_BWHKK, pixels),
        renormalised_pixels=distance(renormalised_BWHKK, pixels),
        entropy=_entropy_of_tokens(attention),
        uniform_steps=distance(uniform_1WHKK, steps).item(),
        uniform_pixels=distance(uniform_1WHKK, pixels).item(),
    )


def _entropy_of_tokens(attention: AttentionMap) -> Tensor:
    """Entropy over all keys of the window, averaged over real queries (prefix included): (B, H)."""
    per_query_BWHK = torch.special.entr(attention.probabilities).sum(-1)
    real_WK = attention.token_index >= 0
    return (per_query_BWHK * real_WK[:, None]).sum((1, 3)) / real_WK.sum()


def distance_rows(captured: Capture) -> list[dict[str, object]]:
    """One row per block and head, averaged over the images (steps, pixels, nats)."""
    rows: list[dict[str, object]] = []
    for layer, block in enumerate(attention_distances(captured)):
        for head in range(block.entropy.shape[1]):
            rows.append(
                {
                    "layer": layer,
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
