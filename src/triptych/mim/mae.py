"""Masked autoencoders for a plain vision transformer (MAE, He et al., CVPR 2022).

Shapes: T patches, C channels.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.mim.decoder import DecoderSettings, sincos_positions
from triptych.mim.models import VisibleUnitModel
from triptych.mim.vit import VisibleViT

PUBLISHED_DECODER = DecoderSettings(dim=512, depth=8, num_heads=16)


class MAE(VisibleUnitModel):
    """A ViT on visible patches, and a decoder that the class token takes part in (section 3).

    A mask unit is one patch. The encoder's positions become the fixed sine-cosine ones of the
    paper, which pre-training does not change; fine-tuning may.

    Args:
        backbone: timm's VisionTransformer with position embeddings.
        decoder: its size; the published one if None.
        norm_pixels: normalise the target in each patch.

    Raises:
        ValueError: another backbone, one without position embeddings, or widths that do not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: DecoderSettings | None = None,
        *,
        norm_pixels: bool = True,
    ) -> None:
        if type(backbone) is not VisionTransformer:
            raise ValueError(
                f"MAE's encoder is timm's VisionTransformer, got a {type(backbone).__name__}"
            )
        fix_positions(backbone)
        super().__init__(
            VisibleViT(backbone, keep_prefix=True),
            decoder or PUBLISHED_DECODER,
            norm_pixels=norm_pixels,
            prefix_tokens=backbone.num_prefix_tokens,
        )


def fix_positions(backbone: VisionTransformer) -> None:
    """Make the position embeddings the fixed sine-cosine ones, 0 for prefix tokens.

    Raises:
        ValueError: the backbone has none, or a width that is no multiple of 4.
    """
    table = backbone.pos_embed
    if table is None:
        raise ValueError("MAE needs a ViT with position embeddings; this one has none")
    positions_TC = sincos_positions(table.shape[2], backbone.patch_embed.grid_size)
    with torch.no_grad():
        table.zero_()
        table[0, table.shape[1] - len(positions_TC) :] = positions_TC
    table.requires_grad_(False)
