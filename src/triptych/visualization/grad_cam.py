"""Grad-CAM on tokens (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

Shapes: B images, N tokens, C channels, O classes.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.visualization.attention_gradients import target_classes
from triptych.visualization.capture import evaluating
from triptych.visualization.layouts import backbone_layout


def token_grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None = None,
    *,
    block: int = -1,
    site: str | None = None,
) -> Tensor:
    """relu(Σ_c w_c · activation_c) with w_c the mean gradient over the grid: (B, rows, cols).

    Args:
        target: (B,) classes; by default the highest score of each image.
        block: number of the block whose norm is read; the last by default.
        site: module path of that norm. By default the first where the head reads a class token,
            since the last block's own patches no longer reach it, and else the last, whose maps
            are better localised in windowed backbones.

    Raises:
        ValueError: no backbone that is known, no such block, or ``target`` names no class.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    layout = backbone_layout(model, size)
    if not -len(layout.blocks) <= block < len(layout.blocks):
        raise ValueError(f"block={block} must be one of the {len(layout.blocks)} blocks")
    chosen = layout.blocks[block]
    if site is None and not chosen.norm_sites:
        raise ValueError(f"{chosen.name} has no norm of its own; choose another block")
    path = site or chosen.norm_sites[0 if layout.reads_class_token else -1]
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        norm = chosen.block.get_submodule(path)
        hook = norm.register_forward_hook(lambda _module, _args, output: outputs.append(output))
        stack.callback(hook.remove)
        stack.enter_context(evaluating(model, gradients=True))
        scores_BO = model(images.detach().requires_grad_())
        score = scores_BO.gather(1, target_classes(scores_BO, target)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, outputs[-1])
    batch, channels = len(images), gradient.shape[-1]
    gradient_BNC = gradient.reshape(batch, -1, channels)[:, chosen.prefix_tokens :]
    activation_BNC = outputs[-1].detach().reshape(batch, -1, channels)[:, chosen.prefix_tokens :]
    cam_BN = (gradient_BNC.mean(1, keepdim=True) * activation_BNC).sum(-1).relu()
    return cam_BN.unflatten(1, chosen.grid)


def spread_over_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, rows, cols) scaled to [0, 1], enlarged bilinearly to ``size`` and scaled again."""
    enlarged = F.interpolate(_to_unit(maps)[:, None], size, mode="bilinear", align_corners=False)
    return _to_unit(enlarged[:, 0])


def _to_unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)
