"""A plain vision transformer on visible tokens alone (MAE, He et al., CVPR 2022, section 3).

Shapes: B batch, P plans (1 for the whole batch, or B), N visible patches, A prefix tokens,
C channels, T patches of the grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.mim.encoder import (
    VisibleEncoder,
    apply_norm,
    check_patch_embedding,
    embed_visible,
    visible_tokens,
)
from triptych.mim.token_plan import MaskPlan, StageShape
from triptych.mim.windows import Lattice, Pair


class VisibleViT(VisibleEncoder):
    """Visible-token encoder of timm's VisionTransformer; a mask unit is one patch.

    Prefix tokens (cls, registers) take part in every block; the latents are those of the patches,
    with ``keep_prefix`` behind the prefix tokens' (B, A + K, C).

    Raises:
        ValueError: the backbone has parts that this encoder does not know.
    """

    backbone: VisionTransformer

    def __init__(self, backbone: VisionTransformer, *, keep_prefix: bool = False) -> None:
        embed = check_patch_embedding(backbone)
        for number, block in enumerate(backbone.blocks):
            if type(block) is not Block:
                raise ValueError(
                    f"block {number} is a {type(block).__name__}; visible tokens need timm's Block"
                )
        if not isinstance(backbone.patch_drop, nn.Identity):
            raise ValueError(
                "the backbone drops patches by itself; build it with patch_drop_rate=0"
            )
        super().__init__(backbone, embed.patch_size[0], Lattice.backbone)
        self.dropped = 0 if keep_prefix else backbone.num_prefix_tokens

    def stage_shapes(self, image_size: Pair) -> tuple[StageShape, ...]:
        """See :meth:`VisibleEncoder.stage_shapes`."""
        grid = image_size[0] // self.unit, image_size[1] // self.unit
        return (StageShape(grid, self.backbone.embed_dim),)

    def encode(self, images: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisibleEncoder.encode`."""
        model, stage = self.backbone, plan.stages[0]
        visible = visible_tokens(stage)
        patches = embed_visible(self.embed, images, stage.tokens, visible)
        grid = images.shape[2] // self.unit, images.shape[3] // self.unit
        x_BNC = self._add_positions(patches, stage.tokens, grid)
        x_BNC = apply_norm(model.norm_pre, x_BNC, visible)
        for block in cast(Iterable[Block], model.blocks):
            if model.grad_checkpointing and x_BNC.requires_grad:
                x_BNC = checkpoint(_run_block, block, x_BNC, visible, use_reentrant=False)
            else:
                x_BNC = _run_block(block, x_BNC, visible)
        return apply_norm(model.norm, x_BNC, visible)[:, self.dropped :]

    def _add_positions(self, x_BNC: Tensor, tokens_PN: Tensor, grid: Pair) -> Tensor:
        """Add the visible patches' position embeddings, and put the prefix tokens in front."""
        model = self.backbone
        prefix = [p for p in (model.cls_token, model.reg_token) if p is not None]
        prefix_BAC = [p.expand(len(x_BNC), -1, -1) for p in prefix]
        if model.pos_embed is None:
            return torch.cat((*prefix_BAC, x_BNC), 1)
        embedded = 0 if model.no_embed_class else model.num_prefix_tokens
        position = model.pos_embed
        if model.dynamic_img_size:
            position = resample_abs_pos_embed(
                position,
                new_size=list(grid),
                old_size=list(model.patch_embed.grid_size),
                num_prefix_tokens=embedded,
            )
        x_BNC = x_BNC + position[0, embedded:][tokens_PN]
        if prefix_BAC:
            prefix_BKC = torch.cat(prefix_BAC, 1)
            if embedded:
                prefix_BKC = prefix_BKC + position[:, :embedded]
            x_BNC = torch.cat((prefix_BKC, x_BNC), 1)
        return model.pos_drop(x_BNC)


def _run_block(block: Block, x_BNC: Tensor, visible: Tensor | None) -> Tensor:
    y_BNC = block.attn(apply_norm(block.norm1, x_BNC, visible))
    x_BNC = x_BNC + block.drop_path1(block.ls1(y_BNC))
    y_BNC = block.mlp(apply_norm(block.norm2, x_BNC, visible))
    return x_BNC + block.drop_path2(block.ls2(y_BNC))
