"""Relevance propagated layer by layer through a plain ViT (LRP), and attribution made of it.

Chefer, Gur and Wolf 2021, "Transformer Interpretability Beyond Attention Visualization" (arXiv
2012.09838): relevance of the class score goes back through every operation, and where it passes
attention it is kept. Attribution weighs it by the gradient of attention and composes the blocks.

Shapes: B images, N tokens (class token first), C channels, H heads, D channels of a head, Y and X
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.visualization.attention_gradients import capture_gradients
from triptych.visualization.capture import evaluating
from triptych.visualization.propagation_rules import (
    through_copies,
    through_linear,
    through_pixels,
    through_product,
    through_sum,
)

_SCORES, _VALUES = "bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd"


@dataclass(frozen=True)
class PropagatedRelevance:
    """Relevance of a class score where it passed.

    Attributes:
        attention: of each block (B, H, N, N).
        gradients: of the score with respect to each block's attention, (B, H, N, N).
        pixels: (B, Y, X), summed over channels.
        target: (B,), the class.
    """

    attention: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    pixels: Tensor
    target: Tensor

    def attribution(self) -> Tensor:
        """Per patch (B, N − 1): Π (I + mean over heads of relu(∇A ⊙ R)), row of the class token.

        Equations 13 and 14; as in the released code no row is normalised.
        """
        pairs = zip(self.attention, self.gradients, strict=True)
        return _composed([(own * grad).clamp_min(0).mean(1) for own, grad in pairs])

    def rollout(self) -> Tensor:
        """The same of positive relevance without gradients."""
        return _composed([own.clamp_min(0).mean(1) for own in self.attention])

    def of_block(self, index: int) -> Tensor:
        """Mean over heads of the positive relevance of one block, row of the class token."""
        return self.attention[index].clamp_min(0).mean(1)[:, 0, 1:]


def _composed(matrices: list[Tensor]) -> Tensor:
    eye = torch.eye(matrices[0].shape[-1], device=matrices[0].device)
    joint = matrices[0] + eye
    for one in matrices[1:]:
        joint = (one + eye) @ joint
    return joint[:, 0, 1:]


def propagate_relevance(
    model: nn.Module, images: Tensor, target: Tensor | None = None
) -> PropagatedRelevance:
    """Run a ViT on ``images`` (B, 3, Y, X) and propagate the score of a class back to the pixels.

    Norms, activations and softmax hand relevance on as it is, so any norm will do.

    Args:
        target: (B,) classes; by default the predicted ones.

    Raises:
        ValueError: not a plain ViT of timm with a class token, or as `capture_gradients`.
    """
    vit = _plain_vit(model)
    graded = capture_gradients(model, images, target)
    with evaluating(model):
        patches = vit.patch_embed(images)
        start = torch.cat((vit.cls_token.expand(len(images), -1, -1), patches), 1)
        x_BNC = start + vit.pos_embed
        runs = []
        for block in vit.blocks:
            runs.append(_BlockRun(block, x_BNC))
            x_BNC = runs[-1].output
        read = vit.norm(x_BNC)[:, 0]
        score = nn.functional.one_hot(graded.target, vit.num_classes).to(read)
        relevance = torch.zeros_like(x_BNC)
        relevance[:, 0] = through_linear(vit.head, read, score)
        kept = []
        for run in reversed(runs):
            relevance, attention = run.back(relevance)
            kept.append(attention)
        embedded = through_sum(start, vit.pos_embed.expand_as(start), relevance)[0][:, 1:]
        grid = vit.patch_embed.grid_size
        shaped = embedded.transpose(1, 2).unflatten(2, grid)
        pixels = through_pixels(vit.patch_embed.proj, images, shaped).sum(1)
    gradients = tuple(one[:, 0] for one in graded.gradients)
    return PropagatedRelevance(tuple(reversed(kept)), gradients, pixels, graded.target)


class _BlockRun:
    """One block run forward with its operations apart."""

    def __init__(self, block: Any, x_BNC: Tensor) -> None:
        self.block, self.x = block, x_BNC
        attn = block.attn
        self.normed = block.norm1(x_BNC)
        qkv = attn.qkv(self.normed).unflatten(-1, (3, attn.num_heads, -1))
        self.query, self.key, self.value = qkv.permute(2, 0, 3, 1, 4)
        scores = torch.einsum(_SCORES, self.query, self.key)
        self.attention = (scores * attn.scale).softmax(-1)
        mixed = torch.einsum(_VALUES, self.attention, self.value)
        self.mixed = mixed.transpose(1, 2).flatten(2)
        self.attended = attn.proj(self.mixed)
        self.between = x_BNC + self.attended
        self.normed2 = block.norm2(self.between)
        self.hidden = block.mlp.act(block.mlp.fc1(self.normed2))
        self.fed = block.mlp.fc2(self.hidden)
        self.output = self.between + self.fed

    def back(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of the block's input (B, N, C) and of its attention (B, H, N, N)."""
        skip, branch = through_sum(self.between, self.fed, relevance)
        branch = through_linear(self.block.mlp.fc2, self.hidden, branch)
        branch = through_linear(self.block.mlp.fc1, self.normed2, branch)
        between = through_copies(self.between, skip, branch)
        skip, branch = through_sum(self.x, self.attended, between)
        branch, attention = self._through_attention(branch)
        return through_copies(self.x, skip, branch), attention

    def _through_attention(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.block.attn
        mixed = through_linear(attn.proj, self.mixed, relevance)
        mixed_BHND = mixed.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        attention, value = through_product(_VALUES, self.attention, self.value, mixed_BHND)
        query, key = through_product(_SCORES, self.query, self.key, attention)
        joined = torch.stack((query, key, value)).permute(1, 3, 0, 2, 4).flatten(2)
        return through_linear(attn.qkv, self.normed, joined), attention


def _plain_vit(model: nn.Module) -> Any:
    """``model`` itself.

    Raises:
        ValueError: it computes anything that has no rule here.
    """
    plain: Any = model
    if not isinstance(model, VisionTransformer) or not _has_rules(plain):
        raise ValueError(
            f"relevance cannot be propagated through this {type(model).__name__}; give a plain ViT "
            "of timm whose head reads its class token, without layer scale or norms of queries"
        )
    return plain


def _has_rules(model: Any) -> bool:
    whole = (model.norm_pre, model.fc_norm)
    parts = [
        part
        for block in model.blocks
        for part in (block.ls1, block.ls2, block.mlp.norm, block.attn.q_norm, block.attn.k_norm)
    ]
    skips = all(isinstance(part, nn.Identity) for part in (*whole, *parts))
    reads_class_token = model.global_pool == "token" and model.num_prefix_tokens == 1
    added = not model.no_embed_class and model.pos_embed is not None
    return skips and reads_class_token and added and isinstance(model.head, nn.Linear)
