"""PVT v1 and v2 on visible tokens alone (arXiv 2102.12122 and 2106.13797; GreenMIM, 2205.13515).

Shapes: B batch, N visible tokens of a stage, A prefix tokens, C channels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.mim.encoder import apply_norm, embed_visible, visible_tokens
from triptych.mim.pyramid import VisiblePyramid, convolve_tokens, merge_cells
from triptych.mim.reduced_attention import reduced_attention
from triptych.mim.sparse_conv import convolve_pixels
from triptych.mim.token_plan import MaskPlan, StagePlan


class VisiblePvt(VisiblePyramid):
    """Visible-token encoder of :class:`~triptych.backbones.ReleasedPvt` (PVT v1).

    The class token takes part in the last stage; the latents are those of the patches.
    """

    backbone: ReleasedPvt

    def stage_blocks(self) -> list[list[Any]]:
        """See :meth:`VisiblePyramid.stage_blocks`."""
        stages = range(1, len(self.backbone.depths) + 1)
        return [list(self.backbone.get_submodule(f"block{n}").children()) for n in stages]

    def stage_convolutions(self) -> list[list[nn.Conv2d]]:
        """See :meth:`VisiblePyramid.stage_convolutions`."""
        return [[] for _ in self.backbone.depths]

    def run_stage(self, number: int, x: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisiblePyramid.run_stage`."""
        model, stage, shared = self.backbone, plan.stages[number], plan.num_plans == 1
        embed, visible = model.get_submodule(f"patch_embed{number + 1}"), visible_tokens(stage)
        if number == 0:
            x_BNC = embed_visible(embed, x, stage.tokens, visible)
        else:
            x_BNC = merge_cells(embed, x, stage, shared)
        last = number == len(plan.stages) - 1
        position = model.get_parameter(f"pos_embed{number + 1}")
        x_BNC = x_BNC + position[0, int(last) :][stage.tokens]
        if last:
            prefix_B1C = (model.cls_token + position[:, :1]).expand(len(x_BNC), -1, -1)
            x_BNC = torch.cat((prefix_B1C, x_BNC), 1)
        for block in self.stage_blocks()[number]:
            y_BNC = reduced_attention(
                block.attn, apply_norm(block.norm1, x_BNC, visible), stage, shared
            )
            x_BNC = x_BNC + block.drop_path(y_BNC)
            y_BNC = block.mlp(apply_norm(block.norm2, x_BNC, visible))
            x_BNC = x_BNC + block.drop_path(y_BNC)
        return apply_norm(model.norm, x_BNC, visible)[:, 1:] if last else x_BNC


class VisiblePvtV2(VisiblePyramid):
    """Visible-token encoder of timm's PyramidVisionTransformerV2.

    Its embeddings overlap and its MLPs hold a 3 x 3 depthwise convolution: both see zeros where
    pixels or tokens are hidden.
    """

    backbone: PyramidVisionTransformerV2

    def stage_blocks(self) -> list[list[Any]]:
        """See :meth:`VisiblePyramid.stage_blocks`."""
        return [list(stage.blocks.children()) for stage in _stages(self.backbone)]

    def stage_convolutions(self) -> list[list[nn.Conv2d]]:
        """See :meth:`VisiblePyramid.stage_convolutions`."""
        embeds = [self.backbone.patch_embed, *(s.downsample for s in _stages(self.backbone)[1:])]
        return [
            [embed.proj, *(block.mlp.dwconv for block in blocks)]
            for embed, blocks in zip(embeds, self.stage_blocks(), strict=True)
        ]

    def run_stage(self, number: int, x: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisiblePyramid.run_stage`."""
        stage, shared = plan.stages[number], plan.num_plans == 1
        module, visible = _stages(self.backbone)[number], visible_tokens(stage)
        if number == 0:
            embed, units = self.backbone.patch_embed, plan.stages[-1]
            assert stage.by_unit is not None  # the embedding is a convolution
            x_BNC = convolve_pixels(
                embed.proj, x, units.tokens, units.visible, stage.by_unit, self.unit
            )
        else:
            embed = module.downsample
            x_BNC = convolve_tokens(embed.proj, x, stage, shared)
        x_BNC = apply_norm(embed.norm, x_BNC, visible)
        for block in module.blocks:
            run = partial(_run_block, block, stage, shared)
            if module.grad_checkpointing and x_BNC.requires_grad:
                x_BNC = checkpoint(run, x_BNC, use_reentrant=False)
            else:
                x_BNC = run(x_BNC)
        return apply_norm(module.norm, x_BNC, visible)


def _run_block(block: Any, plan: StagePlan, shared: bool, x_BNC: Tensor) -> Tensor:
    visible = visible_tokens(plan)
    y_BNC = reduced_attention(block.attn, apply_norm(block.norm1, x_BNC, visible), plan, shared)
    x_BNC = x_BNC + block.drop_path1(y_BNC)
    mlp = block.mlp
    y_BNE = mlp.relu(mlp.fc1(apply_norm(block.norm2, x_BNC, visible)))
    y_BNE = mlp.drop(mlp.act(convolve_tokens(mlp.dwconv, y_BNE, plan, shared)))
    return x_BNC + block.drop_path2(mlp.drop(mlp.fc2(y_BNE)))


def _stages(backbone: PyramidVisionTransformerV2) -> list[Any]:
    return list(backbone.stages.children())
