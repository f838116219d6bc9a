"""One forward pass that keeps what the pictures need: attention, hidden states, norms.

timm's fused kernels never form the attention matrix, so it is computed again from the queries and
keys that the layer itself made, and held against the layer's own output.

Shapes: B images, N tokens (prefix tokens first, then the grid row by row), C channels, H heads,
W windows, K tokens in a window, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.visualization.attention_map import AttentionMap
from triptych.visualization.tapes import BlockTape

NORM_SITES = ("norm1", "norm2")


@dataclass(frozen=True)
class NormCapture:
    """What one norm was given and what it returned, both (B, N, C).

    Attributes:
        site: "norm1" (before attention) or "norm2" (before the MLP).
        kind: class name of the norm, such as "LayerNorm".
    """

    site: str
    kind: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class BlockCapture:
    """One transformer block.

    Attributes:
        name: module path in the backbone, such as "layers.1.blocks.0".
        stage: index of the stage, 0 for a backbone of one resolution.
        grid: (rows, columns) of its tokens.
        stride: (height, width) in pixels of the image region of one token.
        heads: number of attention heads.
        window: (rows, columns) of an attention window in tokens; the grid for global attention.
        shift: (rows, columns) by which the windows are shifted.
        hidden: (B, N, C), block output, residual stream, before any later norm.
        attention: None where it was not asked for.
        norms: empty where they were not asked for.
    """

    name: str
    stage: int
    grid: tuple[int, int]
    stride: tuple[int, int]
    heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    hidden: Tensor
    attention: AttentionMap | None
    norms: tuple[NormCapture, ...]

    @property
    def attention_map(self) -> AttentionMap:
        """The attention.

        Raises:
            ValueError: the capture was made without attention.
        """
        if self.attention is None:
            raise ValueError(
                f"block {self.name} was captured with attention=False; "
                "capture again with attention=True"
            )
        return self.attention


@dataclass(frozen=True)
class Capture:
    """What one forward pass of a backbone left behind.

    Attributes:
        blocks: in the order of the forward pass.
        prefix_tokens: number of tokens before the grid (class token, registers).
        reads_class_token: True where the head reads token 0, False where it averages the grid.
        image_size: (height, width) in pixels.
        output: what the model returned.
    """

    blocks: tuple[BlockCapture, ...]
    prefix_tokens: int
    reads_class_token: bool
    image_size: tuple[int, int]
    output: Tensor

    @property
    def stages(self) -> int:
        """Number of stages, that is of token grids."""
        return self.blocks[-1].stage + 1

    def attention(self) -> Tensor:
        """Dense attention of all blocks, (B, L, H, N, N), for backbones of one stage.

        Raises:
            ValueError: several stages, whose matrices differ in size.
        """
        if self.stages > 1:
            raise ValueError(
                f"the attention of {self.stages} stages cannot be stacked; "
                "read each block's attention_map.dense() or use rollout_to_input"
            )
        return torch.stack([block.attention_map.dense() for block in self.blocks], dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def capture(
    model: nn.Module, images: Tensor, *, attention: bool = True, norms: bool = True
) -> Capture:
    """Run ``model`` once on ``images`` (B, channels, height, width) and keep its insides.

    Norms are whatever modules stand at ``norm1`` and ``norm2`` of each block. Attention is
    computed in float32 (float64 for a float64 model). Memory: B·H·N·K floats per block.

    Raises:
        ValueError: not a timm VisionTransformer or SwinTransformer, or attention of another kind.
        RuntimeError: the recomputed attention does not reproduce the layer's own output.
    """
    named_blocks = _named_blocks(model)
    with ExitStack() as stack:
        tapes = [
            BlockTape(block, stack, attention=attention, sites=NORM_SITES if norms else ())
            for _, _, block in named_blocks
        ]
        stack.enter_context(evaluating(model))
        output = model(images)
        image_size = (int(images.shape[-2]), int(images.shape[-1]))
        blocks = tuple(
            _block_capture(model, name, stage, tape, image_size)
            for (name, stage, _), tape in zip(named_blocks, tapes, strict=True)
        )
    return Capture(
        blocks=blocks,
        prefix_tokens=_prefix_tokens(model),
        reads_class_token=_reads_class_token(model),
        image_size=image_size,
        output=output,
    )


def _named_blocks(model: Any) -> list[tuple[str, int, nn.Module]]:
    if isinstance(model, VisionTransformer):
        blocks = [(f"blocks.{i}", 0, block) for i, block in enumerate(model.blocks)]
    elif isinstance(model, SwinTransformer):
        blocks = [
            (f"layers.{stage}.blocks.{i}", stage, block)
            for stage, layer in enumerate(model.layers)
            for i, block in enumerate(cast(nn.Sequential, layer.blocks))
        ]
    else:
        raise ValueError(
            f"cannot capture a {type(model).__name__}; "
            "give a timm VisionTransformer or SwinTransformer"
        )
    for name, _, block in blocks:
        layer = getattr(block, "attn", None)
        if not isinstance(layer, (Attention, WindowAttention)):
            raise ValueError(
                f"cannot capture the attention {type(layer).__name__} of {name}; "
                "timm's Attention and WindowAttention are supported"
            )
    return blocks


def _reads_class_token(model: Any) -> bool:
    """A class token counts unless the head averages over the grid and leaves it unread."""
    if isinstance(model, SwinTransformer) or model.cls_token is None:
        return False
    return model.global_pool not in ("avg", "avgmax", "max")


def _prefix_tokens(model: Any) -> int:
    return 0 if isinstance(model, SwinTransformer) else int(model.num_prefix_tokens)


def _block_capture(
    model: Any, name: str, stage: int, tape: BlockTape, image_size: tuple[int, int]
) -> BlockCapture:
    hidden = tape.hidden
    patch = model.patch_embed.patch_size
    if isinstance(model, SwinTransformer):
        grid = (int(hidden.shape[1]), int(hidden.shape[2]))
        stride = (patch[0] * 2**stage, patch[1] * 2**stage)
        window, shift = tape.block.window_size, tape.block.shift_size
    else:
        grid = model.patch_embed.dynamic_feat_size(image_size)
        stride = (patch[0], patch[1])
        window, shift = grid, (0, 0)
    hidden_BNC = hidden.flatten(1, -2)
    tokens = _prefix_tokens(model) + grid[0] * grid[1]
    if hidden_BNC.shape[1] != tokens:
        raise ValueError(
            f"{name} returned {hidden_BNC.shape[1]} tokens where the image has {tokens}; "
            "capture needs a backbone that keeps all its tokens"
        )
    return BlockCapture(
        name=name,
        stage=stage,
        grid=grid,
        stride=stride,
        heads=int(tape.block.attn.num_heads),
        window=tuple(window),
        shift=tuple(shift),
        hidden=hidden_BNC,
        attention=tape.attention_map(tokens, grid) if tape.wants_attention else None,
        norms=tuple(
            NormCapture(site, type(getattr(tape.block, site)).__name__, *tape.norm_tokens(site))
            for site in tape.sites
        ),
    )
