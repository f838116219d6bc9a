"""A Swin Transformer on visible tokens alone (GreenMIM, arXiv 2205.13515).

Shapes: B batch, N visible tokens of a stage, C channels, K visible units.
"""

from __future__ import annotations

from functools import partial
from typing import cast

from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.mim.encoder import (
    VisibleEncoder,
    apply_norm,
    check_patch_embedding,
    embed_visible,
    visible_tokens,
)
from triptych.mim.group_attention import select, window_attention
from triptych.mim.recompute import norm_linear, norm_mlp
from triptych.mim.rows import WindowRows
from triptych.mim.token_plan import MaskPlan, StagePlan, StageShape
from triptych.mim.windows import Lattice, Pair


class VisibleSwin(VisibleEncoder):
    """Visible-token encoder of timm's SwinTransformer.

    A mask unit is one token of the last stage, so that no merge meets a partly hidden block.
    Windows and shifts are read from the backbone's blocks.

    The latents equal those of the dense backbone with the hidden keys removed. Where a grid is
    not a multiple of the window, ``lattice`` says what becomes of the padding (see
    :mod:`triptych.mim.windows`).

    Raises:
        ValueError: the backbone has parts that this encoder does not know.
    """

    backbone: SwinTransformer

    def __init__(self, backbone: SwinTransformer, lattice: Lattice | str = Lattice.tokens) -> None:
        unit = check_patch_embedding(backbone).patch_size[0] * 2 ** (len(backbone.layers) - 1)
        _check_blocks(backbone)
        super().__init__(backbone, unit, Lattice(lattice))

    def stage_shapes(self, image_size: Pair) -> tuple[StageShape, ...]:
        """See :meth:`VisibleEncoder.stage_shapes`."""
        patch = self.embed.patch_size[0]
        shapes = []
        for number, stage in enumerate(_stages(self.backbone)):
            stride = patch * 2**number
            windows = tuple(_window_key(block) for block in _blocks(stage))
            grid = image_size[0] // stride, image_size[1] // stride
            shapes.append(StageShape(grid, _blocks(stage)[0].dim, windows))
        return tuple(shapes)

    def encode(self, images: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisibleEncoder.encode`."""
        return self.stage_outputs(images, plan)[-1]

    def stage_outputs(self, images: Tensor, plan: MaskPlan) -> list[Tensor]:
        """Visible tokens (B, N, C) after each stage; the last ones after the final norm."""
        first = plan.stages[0]
        x_BNC = embed_visible(self.embed, images, first.tokens, visible_tokens(first))
        return self.run_stages(x_BNC, plan)

    def run_stages(self, x_BNC: Tensor, plan: MaskPlan) -> list[Tensor]:
        """As :meth:`stage_outputs`, of visible tokens (B, N, C) after the patch embedding."""
        shared = plan.num_plans == 1
        outputs = []
        for stage, stage_plan in zip(_stages(self.backbone), plan.stages, strict=True):
            x_BNC = _run_stage(stage, x_BNC, stage_plan, shared)
            outputs.append(x_BNC)
        outputs[-1] = apply_norm(self.backbone.norm, x_BNC, visible_tokens(plan.stages[-1]))
        return outputs


def _run_stage(stage: SwinTransformerStage, x_BNC: Tensor, plan: StagePlan, shared: bool) -> Tensor:
    visible = visible_tokens(plan)
    if plan.children is not None:
        children = select(plan.children, x_BNC, shared)
        merged = children.reshape(x_BNC.shape[0], -1, 4 * x_BNC.shape[2])
        merging = stage.downsample
        reduced = norm_linear(merging.norm, merging.reduction, merged)
        if reduced is None:
            reduced = merging.reduction(apply_norm(merging.norm, merged, visible))
        x_BNC = reduced
    pairs = {key: rows.pair_index() for key, rows in plan.rows.items()}
    for block in _blocks(stage):
        key = _window_key(block)
        run = partial(_run_block, block, visible, plan.rows[key], pairs[key], shared)
        if stage.grad_checkpointing and x_BNC.requires_grad:
            x_BNC = checkpoint(run, x_BNC, use_reentrant=False)
        else:
            x_BNC = run(x_BNC)
    return x_BNC


def _run_block(
    block: SwinTransformerBlock,
    visible: Tensor | None,
    rows: WindowRows,
    pairs_RGG: Tensor,
    shared: bool,
    x_BNC: Tensor,
) -> Tensor:
    qkv_BNE = norm_linear(block.norm1, block.attn.qkv, x_BNC)
    if qkv_BNE is None:
        qkv_BNE = block.attn.qkv(apply_norm(block.norm1, x_BNC, visible))
    y_BNC = window_attention(block.attn, qkv_BNE, rows, pairs_RGG, shared)
    x_BNC = x_BNC + block.drop_path1(y_BNC)
    z_BNC = norm_mlp(block.norm2, block.mlp, x_BNC)
    if z_BNC is None:
        z_BNC = block.mlp(apply_norm(block.norm2, x_BNC, visible))
    return x_BNC + block.drop_path2(z_BNC)


def _window_key(block: SwinTransformerBlock) -> tuple[Pair, Pair]:
    (height, width), (down, across) = block.window_size, block.shift_size
    return (int(height), int(width)), (int(down), int(across))


def _stages(backbone: SwinTransformer) -> list[SwinTransformerStage]:
    return cast(list[SwinTransformerStage], list(backbone.layers))


def _blocks(stage: SwinTransformerStage) -> list[SwinTransformerBlock]:
    return cast(list[SwinTransformerBlock], list(stage.blocks))


def _check_blocks(backbone: SwinTransformer) -> None:
    for number, stage in enumerate(_stages(backbone)):
        expected = nn.Identity if number == 0 else PatchMerging
        if not isinstance(stage.downsample, expected):
            raise ValueError(
                f"stage {number} begins with {type(stage.downsample).__name__}; visible tokens "
                f"need {expected.__name__} there"
            )
        for block in _blocks(stage):
            if not isinstance(block.attn, WindowAttention):
                raise ValueError(
                    f"stage {number} attends with {type(block.attn).__name__}; visible tokens "
                    f"need timm's WindowAttention"
                )
