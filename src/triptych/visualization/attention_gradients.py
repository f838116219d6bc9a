"""Gradients of class scores with respect to attention, whatever kernel computes it.

The product of the recomputed attention takes the place of each layer's own in the forward pass,
so that the gradient of a score reaches every matrix; parameters may be frozen.

Shapes: B images, W windows, H heads, Q queries and K keys of a window, O classes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from triptych.visualization.capture import Capture, block_capture, evaluating
from triptych.visualization.layouts import backbone_layout
from triptych.visualization.readers import reader_of
from triptych.visualization.tapes import AttentionTape, BlockTape


@dataclass(frozen=True)
class GradientCapture:
    """A capture with the gradient of one score of each image.

    Attributes:
        captured: attention and hidden states, without norms; ``output`` (B, O).
        gradients: one (B, W, H, Q, K) per block, like its attention's probabilities.
        target: (B,), the class whose score was derived.
    """

    captured: Capture
    gradients: tuple[Tensor, ...]
    target: Tensor


def capture_gradients(
    model: nn.Module, images: Tensor, target: Tensor | None = None
) -> GradientCapture:
    """Run ``model`` forward and backward once on ``images`` (B, channels, height, width).

    Memory: the graph of the forward pass and attention with gradient of every block. Parameters
    get no gradient.

    Args:
        target: (B,) classes; by default the highest score of each image.

    Raises:
        ValueError: as `capture`, or ``target`` names no class of each image.
        RuntimeError: the recomputed attention does not reproduce the layer's own output.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    layout = backbone_layout(model, size)
    with ExitStack() as stack:
        tapes = [
            (BlockTape(block, stack, norms=False), AttentionTape(reader_of(block), stack, True))
            for block in layout.blocks
        ]
        stack.enter_context(evaluating(model, gradients=True))
        # A frozen model has a graph from the pixels on.
        output = model(images.detach().requires_grad_())
        chosen = target_classes(output, target)
        score = output.gather(1, chosen[:, None]).sum()
        attention = [made.attention.probabilities for _, made in tapes]
        gradients = torch.autograd.grad(score, attention)
        blocks = tuple(
            block_capture(index, block, tape, made)
            for index, (block, (tape, made)) in enumerate(zip(layout.blocks, tapes, strict=True))
        )
    kept = tuple(
        replace(
            block,
            attention=replace(
                block.attention_map, probabilities=block.attention_map.probabilities.detach()
            ),
        )
        for block in blocks
    )
    captured = Capture(kept, len(kept), layout.reads_class_token, size, output.detach())
    return GradientCapture(captured, gradients, chosen)


def target_classes(output: Tensor, target: Tensor | None) -> Tensor:
    """``target`` (B,), or the highest score of each row of ``output`` (B, O).

    Raises:
        ValueError: another shape, or a number that is no class.
    """
    if target is None:
        return output.argmax(1)
    classes = output.shape[1]
    if target.shape != output.shape[:1] or not bool(((target >= 0) & (target < classes)).all()):
        raise ValueError(
            f"target={target.tolist()} must name one of the classes 0 to {classes - 1} for each "
            f"of {len(output)} images"
        )
    return target.to(output.device)
