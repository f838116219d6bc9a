"""timm's hierarchical backbones from a specification: Twins, PVT v2 and LeViT."""

from __future__ import annotations

from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import Twins
from torch import nn

from triptych.backbones.spec import BackboneSpec, Ends, Family


def build_twins(spec: BackboneSpec, ends: Ends) -> nn.Module:
    """Twins-SVT, whose even blocks attend within windows, or Twins-PCPVT, which has none."""
    svt = spec.family is Family.twins_svt
    return Twins(
        img_size=ends.image_size,
        patch_size=spec.patch_size,
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        embed_dims=spec.embed_dims,
        num_heads=spec.num_heads,
        mlp_ratios=spec.stage_mlp_ratios,
        depths=spec.depths,
        sr_ratios=spec.sr_ratios,
        wss=(spec.window_size,) * len(spec.depths) if svt else None,
        drop_path_rate=ends.drop_path,
    )


def build_pvt_v2(spec: BackboneSpec, ends: Ends) -> nn.Module:
    """PVT v2; it takes any image, so ``image_size`` is not used."""
    return PyramidVisionTransformerV2(
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        depths=spec.depths,
        embed_dims=spec.embed_dims,
        num_heads=spec.num_heads,
        sr_ratios=spec.sr_ratios,
        mlp_ratios=spec.stage_mlp_ratios,
        qkv_bias=spec.qkv_bias,
        drop_path_rate=ends.drop_path,
    )


def build_levit(spec: BackboneSpec, ends: Ends) -> nn.Module:
    """LeViT without the distillation head, its stem of stride ``patch_size`` (8 or 16)."""
    return Levit(
        img_size=ends.image_size,
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        embed_dim=spec.embed_dims,
        key_dim=spec.key_dim,
        depth=spec.depths,
        num_heads=spec.num_heads,
        attn_ratio=spec.attention_ratio,
        mlp_ratio=spec.stage_mlp_ratios,
        stem_type=f"s{spec.patch_size}",
        drop_path_rate=ends.drop_path,
    )
