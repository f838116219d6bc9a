"""Twins (SVT and PCPVT) on visible tokens alone (GreenMIM, arXiv 2205.13515; Twins, arXiv
2104.13840).

Shapes: B batch, N visible tokens of a stage, C channels, R rows, G slots of a row, H heads,
D channels a head, Q samples that share the rows (the batch with one plan, 1 with a plan for each).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn, PosConv, Twins
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.mim.encoder import apply_norm, embed_visible, visible_tokens
from triptych.mim.group_attention import select, unselect
from triptych.mim.pyramid import VisiblePyramid, convolve_tokens, merge_cells
from triptych.mim.reduced_attention import reduced_attention
from triptych.mim.rows import WindowRows
from triptych.mim.token_plan import MaskPlan, StagePlan
from triptych.mim.windows import Lattice, Pair


class VisibleTwins(VisiblePyramid):
    """Visible-token encoder of timm's Twins, both kinds.

    Windows (SVT) hold visible tokens alone; keys are reduced from visible cells; the position
    encoding's 3 x 3 depthwise convolution sees zeros where tokens are hidden, and keeps its
    residual, which GreenMIM's released code has lost.

    Raises:
        ValueError: the backbone has parts that this encoder does not know.
    """

    backbone: Twins

    def __init__(
        self,
        backbone: Twins,
        image_size: Pair | None = None,
        lattice: Lattice | str = Lattice.tokens,
    ) -> None:
        _check_blocks(backbone)
        super().__init__(backbone, image_size, lattice)

    def stage_blocks(self) -> list[list[Any]]:
        """See :meth:`VisiblePyramid.stage_blocks`."""
        return [list(blocks.children()) for blocks in self.backbone.blocks]

    def stage_convolutions(self) -> list[list[nn.Conv2d]]:
        """See :meth:`VisiblePyramid.stage_convolutions`."""
        return [[_position_conv(module)] for module in self.backbone.pos_block]

    def stage_windows(self, blocks: list[Any]) -> tuple[tuple[Pair, Pair], ...]:
        """See :meth:`VisiblePyramid.stage_windows`."""
        return tuple(
            _window_key(block.attn)
            for block in blocks
            if isinstance(block.attn, LocallyGroupedAttn)
        )

    def run_stage(self, number: int, x: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisiblePyramid.run_stage`."""
        model, stage, shared = self.backbone, plan.stages[number], plan.num_plans == 1
        embed, visible = model.patch_embeds[number], visible_tokens(stage)
        if number == 0:
            x_BNC = embed_visible(embed, x, stage.tokens, visible)
        else:
            x_BNC = merge_cells(embed, x, stage, shared)
        x_BNC = model.pos_drops[number](x_BNC)
        windows = {key: _Windows(rows) for key, rows in stage.rows.items()}
        for index, block in enumerate(self.stage_blocks()[number]):
            x_BNC = _run_block(block, x_BNC, stage, windows, shared)
            if index == 0:
                conv = _position_conv(model.pos_block[number])
                x_BNC = x_BNC + convolve_tokens(conv, x_BNC, stage, shared)
        if number == len(plan.stages) - 1:
            x_BNC = apply_norm(model.norm, x_BNC, visible)
        return x_BNC


class _Windows:
    """The rows of a stage's windows, and who may attend to whom in them, worked out once."""

    def __init__(self, rows: WindowRows) -> None:
        self.rows = rows

    @cached_property
    def together(self) -> Tensor:
        """Bool (R, 1, G, G): both slots are in one window; empty slots are in one of their own."""
        window = self.rows.window
        return (window[:, :, None] == window[:, None, :])[:, None]


def _run_block(
    block: Any,
    x_BNC: Tensor,
    plan: StagePlan,
    windows: dict[tuple[Pair, Pair], _Windows],
    shared: bool,
) -> Tensor:
    visible = visible_tokens(plan)
    y_BNC = apply_norm(block.norm1, x_BNC, visible)
    if isinstance(block.attn, LocallyGroupedAttn):
        y_BNC = _attend_locally(block.attn, y_BNC, windows[_window_key(block.attn)], shared)
    else:
        y_BNC = reduced_attention(block.attn, y_BNC, plan, shared)
    x_BNC = x_BNC + block.drop_path1(y_BNC)
    return x_BNC + block.drop_path2(block.mlp(apply_norm(block.norm2, x_BNC, visible)))


def _attend_locally(
    attn: LocallyGroupedAttn, x_BNC: Tensor, windows: _Windows, shared: bool
) -> Tensor:
    """Attention within windows, without position bias, on visible tokens: (B, N, C)."""
    rows, heads = windows.rows, attn.num_heads
    qkv_QSE = select(rows.slots, attn.qkv(x_BNC), shared)
    if rows.null is not None:
        # The backbone pads with zero tokens, which the linear layer turns into its bias.
        null = attn.qkv.bias.to(qkv_QSE.dtype)
        qkv_QSE = torch.where(rows.null.view(1, -1, 1), null, qkv_QSE)
    samples, (count, slots) = len(qkv_QSE), rows.window.shape
    mask = windows.together
    qkv = qkv_QSE.reshape(samples, count, slots, 3, heads, -1)
    if samples == 1:
        q, k, v = qkv[0].permute(2, 0, 3, 1, 4)
    else:  # rows become heads, so that one mask serves every sample
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        mask = mask.expand(-1, heads, -1, -1).flatten(0, 1)[None]
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    out = out.reshape(samples, count, heads, slots, -1).transpose(2, 3)
    out_BNC = unselect(rows.slots, out.reshape(samples, count * slots, -1), len(x_BNC), shared)
    return attn.proj_drop(attn.proj(out_BNC))


def _window_key(attn: LocallyGroupedAttn) -> tuple[Pair, Pair]:
    return (int(attn.ws), int(attn.ws)), (0, 0)


def _position_conv(module: Any) -> nn.Conv2d:
    return module.proj[0]


def _check_blocks(backbone: Twins) -> None:
    for number, (blocks, position) in enumerate(
        zip(backbone.blocks, backbone.pos_block, strict=True)
    ):
        if not isinstance(position, PosConv) or position.stride != 1:
            raise ValueError(
                f"stage {number} encodes positions with {type(position).__name__}; visible tokens "
                f"need timm's PosConv of stride 1"
            )
        for block in blocks.children():
            if not isinstance(block.attn, LocallyGroupedAttn | GlobalSubSampleAttn):
                raise ValueError(
                    f"stage {number} attends with {type(block.attn).__name__}; visible tokens "
                    f"need timm's LocallyGroupedAttn or GlobalSubSampleAttn"
                )
