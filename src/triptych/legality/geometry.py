"""Strides, token grids and widths of a backbone, from its configuration alone."""

from __future__ import annotations

import math

from triptych.choices import Family
from triptych.config import BackboneConfig

ONE_STAGE = (Family.vit, Family.released_vit, Family.t2t_vit)
# Those whose widths are listed; Swin doubles its first one.
WIDTH_LISTED = (Family.pvt, Family.pvt_v2, Family.twins_svt, Family.twins_pcpvt, Family.levit)
KEY_REDUCING = (Family.pvt, Family.pvt_v2, Family.twins_svt, Family.twins_pcpvt)


def total_stride(backbone: BackboneConfig) -> int:
    """Pixels on a side of one token of the last stage (one mask unit)."""
    if backbone.family is Family.t2t_vit:
        return math.prod(backbone.strides)
    if backbone.family in (Family.vit, Family.released_vit, Family.timm):
        return backbone.patch_size
    return backbone.patch_size * 2 ** (len(backbone.depths) - 1)


def image_multiple(backbone: BackboneConfig) -> int:
    """What the image size must be a multiple of; LeViT rounds odd grids up when it halves them."""
    return backbone.patch_size if backbone.family is Family.levit else total_stride(backbone)


def stage_grids(backbone: BackboneConfig, image_size: int) -> list[int]:
    """Tokens on a side of each stage's grid, for an image of a legal size.

    None for timm, and for the encoders of sequences.
    """
    if backbone.family is Family.timm or backbone.family.reads_sequences:
        return []
    if backbone.family in ONE_STAGE:
        return [image_size // total_stride(backbone)]
    side = image_size // backbone.patch_size
    return [-(-side // 2**stage) for stage in range(len(backbone.depths))]


def stage_widths(backbone: BackboneConfig) -> list[int]:
    """Channels of each stage."""
    if backbone.family in WIDTH_LISTED:
        return list(backbone.embed_dims)
    doubles = 2 if backbone.family is Family.swin else 1
    return [backbone.embed_dim * doubles**stage for stage in range(len(backbone.depths))]


def stage_mlp_ratios(backbone: BackboneConfig) -> list[float]:
    """MLP ratio of each stage."""
    return list(backbone.mlp_ratios) or [backbone.mlp_ratio] * len(backbone.depths)
