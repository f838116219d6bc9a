"""Views: the pixels that one coordinate of a token stands for (arXiv 2210.07646).

The local view of filter j in patch k is the product f_j ⊗ x_k, pixel by pixel; its sum is the
coordinate before bias and position. The global view at level 0 lays the local views of all patches
at their places. The view of a token behind block ℓ is the global view with each patch weighted by
the token's row of the attention rollout after that block.

Pixels are those that the model sees, normalised; bias and position embedding are no part of a
view. Views are made when asked for, never for all tokens, filters and levels.

Shapes: B images, C channels, Y and X pixels, F filters, N patches, KH and KW pixels of a patch, T
tokens, M tokens of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.visualization.capture import Capture
from triptych.visualization.filters import PatchFilters
from triptych.visualization.rollout import mixing_matrix, rollout_to_input
from triptych.visualization.stage_reduction import Pair


def patches_of(images: Tensor, filters: PatchFilters) -> Tensor:
    """The pixels under each place of the filters, (B, N, C, KH, KW); 0 beyond the border."""
    columns = F.unfold(images, filters.size, padding=filters.padding, stride=filters.stride)
    return columns.transpose(1, 2).unflatten(2, (images.shape[1], *filters.size))


def local_views(images: Tensor, filters: PatchFilters, index: Sequence[int]) -> Tensor:
    """f_j ⊗ x_k of the filters ``index``, (B, F, N, C, KH, KW).

    Raises:
        ValueError: no such filter.
    """
    chosen = _chosen(filters, index)
    return patches_of(images, filters)[:, None] * chosen[None, :, None]


def embedding_row(
    image: Tensor, filters: PatchFilters, patch: int, index: Sequence[int] | None = None
) -> Tensor:
    """Local views of one patch of ``image`` (C, Y, X) for all filters, (F, C, KH, KW).

    Raises:
        ValueError: no such patch or filter.
    """
    patches = patches_of(image[None], filters)[0]
    if not 0 <= patch < len(patches):
        raise ValueError(f"patch={patch} must be one of the {len(patches)} patches of the image")
    return patches[patch] * (filters.weight if index is None else _chosen(filters, index))


def global_views(
    images: Tensor, filters: PatchFilters, index: Sequence[int], weights: Tensor | None = None
) -> Tensor:
    """Local views at their places in the image, (B, F, C, Y, X).

    Where patches overlap, so do their views, which are added up.

    Args:
        weights: (B, N), share of each patch; 1 by default.

    Raises:
        ValueError: no such filter, or another number of weights.
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    grid = filters.grid(size)
    if weights is not None and weights.shape != (len(images), grid[0] * grid[1]):
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; {len(images)} images of "
            f"{grid[0]}x{grid[1]} patches need ({len(images)}, {grid[0] * grid[1]})"
        )
    if filters.tiles and (grid[0] * filters.stride[0], grid[1] * filters.stride[1]) == size:
        views = images[:, None] * _chosen(filters, index).repeat(1, 1, *grid)
        if weights is None:
            return views
        weights_BYX = weights.view(-1, *grid)
        for axis, side in enumerate(filters.stride, start=1):
            weights_BYX = weights_BYX.repeat_interleave(side, axis)
        return views * weights_BYX[:, None, None]
    views = local_views(images, filters, index)
    if weights is not None:
        views = views * weights[:, None, :, None, None, None]
    columns = views.flatten(0, 1).flatten(2).transpose(1, 2)
    folded = F.fold(columns, size, filters.size, padding=filters.padding, stride=filters.stride)
    return folded.unflatten(0, (len(images), -1))


@dataclass(frozen=True)
class DeepViews:
    """Views of tokens at any level of one forward pass, made one by one.

    Level 0 is the patch embedding, level ℓ the output of block ℓ (from 1 on).

    Attributes:
        images: (B, C, Y, X) as the model saw them.
        filters: of the first stage, or effective ones of the stage that ``rollout`` belongs to.
        rollout: (B, T, M) after each block.
        prefix_tokens: number of sources before the patches in M.
        prefixes: number of prefix tokens in each block; one that joins late shifts the patches.
        grids: token grid of each block.
    """

    images: Tensor
    filters: PatchFilters
    rollout: tuple[Tensor, ...]
    prefix_tokens: int
    prefixes: tuple[int, ...]
    grids: tuple[Pair, ...]

    @property
    def levels(self) -> int:
        """Number of levels, that of the blocks and the embedding."""
        return len(self.rollout) + 1

    def token_of(self, level: int, patch: int) -> int:
        """Number at ``level`` of the token at the place of ``patch`` of the first grid."""
        first, grid = self.grids[0], self.grids[max(level - 1, 0)]
        row = patch // first[1] * grid[0] // first[0]
        column = patch % first[1] * grid[1] // first[1]
        return row * grid[1] + column + self.prefixes[max(level - 1, 0)]

    def weights(self, level: int, token: int) -> Tensor:
        """Share of each patch in a token, (B, N).

        At level 0 tokens are counted as in the first block; a prefix token has no patch.

        Raises:
            ValueError: no such level or token.
        """
        if not 0 <= level < self.levels:
            raise ValueError(f"level={level} must be 0 to {self.levels - 1}")
        steps = self.rollout[max(level - 1, 0)]
        if not 0 <= token < steps.shape[1]:
            raise ValueError(f"token={token} must be 0 to {steps.shape[1] - 1} at level {level}")
        if level:
            return steps[:, token, self.prefix_tokens :]
        weights = steps.new_zeros(len(steps), steps.shape[2] - self.prefix_tokens)
        if token >= self.prefixes[0]:
            weights[:, token - self.prefixes[0]] = 1.0
        return weights

    def view(self, level: int, token: int, index: Sequence[int]) -> Tensor:
        """The views of a token for the filters ``index``, (B, F, C, Y, X).

        Raises:
            ValueError: no such level, token or filter.
        """
        return global_views(self.images, self.filters, index, self.weights(level, token))

    def view_of(self, image: int, level: int, token: int, index: int) -> Tensor:
        """One view of one image, (C, Y, X).

        Raises:
            ValueError: no such level, token or filter.
        """
        weights = self.weights(level, token)[image : image + 1]
        return global_views(self.images[image : image + 1], self.filters, [index], weights)[0, 0]


def deep_views(
    captured: Capture,
    images: Tensor,
    filters: PatchFilters,
    *,
    residual: bool = True,
    head_fusion: str = "mean",
) -> DeepViews:
    """Views carried through all blocks on the patches of the first stage.

    With several stages the filter keeps its meaning in the first alone; see :func:`stage_views`.

    Args:
        filters: of the first stage.
        residual, head_fusion: of the rollout. The official figures do not say which they used;
            these are those of the rollout in the same repository.

    Raises:
        ValueError: the filters have another grid than the first stage, or as `rollout_to_input`.
    """
    steps = rollout_to_input(captured, residual=residual, head_fusion=head_fusion)
    _check_grid(filters, captured, 0)
    return DeepViews(
        images,
        filters,
        steps,
        captured.prefix_tokens,
        tuple(block.prefix_tokens for block in captured.blocks),
        tuple(block.grid for block in captured.blocks),
    )


def stage_views(
    captured: Capture,
    images: Tensor,
    filters: PatchFilters,
    stage: int,
    *,
    residual: bool = True,
    head_fusion: str = "mean",
) -> DeepViews:
    """Views inside one stage, on its own patches, by that stage's rollout alone.

    Args:
        filters: effective filters of the stage, as ``patch_filters(model, stage)`` gives them.

    Raises:
        ValueError: no such stage, or the filters have another grid.
    """
    blocks = [
        block
        for block in captured.whole()
        if block.stage == stage and block.key_grid is None and block.visible is None
    ]
    if not blocks:
        raise ValueError(f"stage={stage} has no blocks whose tokens lie on one whole grid")
    _check_grid(filters, captured, stage)
    last = blocks[-1].prefix_tokens
    steps: list[Tensor] = []
    for block in blocks:
        late = last - block.prefix_tokens
        dense_BNN = block.attention_map.fused(head_fusion).dense()[:, 0]
        mixing_BNN = mixing_matrix(F.pad(dense_BNN, (late, 0, late, 0)), residual)
        steps.append(mixing_BNN if not steps else mixing_BNN @ steps[-1])
    grids = (blocks[0].grid,) * len(steps)
    return DeepViews(images, filters, tuple(steps), last, (last,) * len(steps), grids)


def for_display(views: Tensor) -> Tensor:
    """Views (..., C, Y, X) as the official figures show them: negatives 0, each over its maximum.

    A view without a positive pixel is black.
    """
    positive = views.clamp_min(0)
    most = positive.amax((-3, -2, -1), keepdim=True)
    return positive / most.clamp_min(torch.finfo(views.dtype).tiny)


def _chosen(filters: PatchFilters, index: Sequence[int]) -> Tensor:
    wrong = [one for one in index if not 0 <= one < filters.count]
    if wrong or not len(index):
        raise ValueError(
            f"filters {list(index)} must be some of the {filters.count}, counted from 0"
        )
    return filters.weight[list(index)]


def _check_grid(filters: PatchFilters, captured: Capture, stage: int) -> None:
    block = next(block for block in captured.blocks if block.stage == stage)
    grid = filters.grid(captured.image_size)
    if grid != block.grid:
        raise ValueError(
            f"the filters have a grid of {grid[0]}x{grid[1]}, stage {stage} one of "
            f"{block.grid[0]}x{block.grid[1]}; give the filters of that stage"
        )
