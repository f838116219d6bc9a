"""Build a backbone from its specification, always with the norm that it is published with.

Other norms are put in afterwards by :func:`triptych.norms.replace_norms`: timm hands its
``norm_layer`` only the width, and a norm that looks at neighbouring tokens needs the grid too.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.backbones.initialization import initialize_xavier
from triptych.backbones.pyramids import build_levit, build_pvt_v2, build_twins
from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.backbones.spec import BackboneSpec, Ends, Family, image_multiple, total_stride
from triptych.backbones.t2t_vit import T2TViT

__all__ = ["BackboneSpec", "Family", "build_backbone", "image_multiple", "total_stride"]

_TIMM_SCHEME = {"normal": "", "xavier": "jax"}


def build_backbone(
    spec: BackboneSpec,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
) -> nn.Module:
    """Return the model of ``spec`` for images (B, channels, *image_size).

    Raises:
        ValueError: the image does not divide into tokens of the last stage, or timm does not
            know the name.
    """
    ends = Ends(image_size, channels, num_classes, drop_path)
    if spec.family.reads_sequences:
        raise ValueError(
            f"the family {spec.family} takes no images; build it with build_sequence_classifier"
        )
    if spec.family is Family.timm:
        return _build_timm(spec, ends)
    stride = image_multiple(spec)
    if any(side % stride for side in image_size):
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of the backbone's "
            f"total stride {stride}"
        )
    if spec.family in _TIMM_INITIALIZED:
        return _TIMM_INITIALIZED[spec.family](spec, ends)
    model = _OTHERS[spec.family](spec, ends)
    if spec.initialization == "xavier":
        initialize_xavier(model)
    return model


def _build_vit(spec: BackboneSpec, ends: Ends) -> nn.Module:
    return VisionTransformer(
        img_size=ends.image_size,
        patch_size=spec.patch_size,
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        embed_dim=spec.embed_dim,
        depth=spec.depths[0],
        num_heads=spec.num_heads[0],
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        drop_path_rate=ends.drop_path,
        weight_init=_TIMM_SCHEME[spec.initialization],  # type: ignore[arg-type]
    )


def _build_swin(spec: BackboneSpec, ends: Ends) -> nn.Module:
    return SwinTransformer(
        img_size=ends.image_size,
        patch_size=spec.patch_size,
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        embed_dim=spec.embed_dim,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        drop_path_rate=ends.drop_path,
        weight_init=_TIMM_SCHEME[spec.initialization],
    )


def _build_released_vit(spec: BackboneSpec, ends: Ends) -> nn.Module:
    return ReleasedViT(
        image_size=ends.image_size,
        patch_size=spec.patch_size,
        channels=ends.channels,
        num_classes=ends.num_classes,
        embed_dim=spec.embed_dim,
        depth=spec.depths[0],
        num_heads=spec.num_heads[0],
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        class_token_at=spec.class_token_at,
        drop_path=ends.drop_path,
    )


def _build_released_pvt(spec: BackboneSpec, ends: Ends) -> nn.Module:
    return ReleasedPvt(
        image_size=ends.image_size,
        patch_size=spec.patch_size,
        channels=ends.channels,
        num_classes=ends.num_classes,
        embed_dims=spec.embed_dims,
        depths=spec.depths,
        num_heads=spec.num_heads,
        mlp_ratios=spec.stage_mlp_ratios,
        sr_ratios=spec.sr_ratios,
        qkv_bias=spec.qkv_bias,
        drop_path=ends.drop_path,
    )


def _build_t2t_vit(spec: BackboneSpec, ends: Ends) -> nn.Module:
    return T2TViT(
        image_size=ends.image_size,
        channels=ends.channels,
        num_classes=ends.num_classes,
        embed_dim=spec.embed_dim,
        depth=spec.depths[0],
        num_heads=spec.num_heads[0],
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        kernels=spec.kernels,
        strides=spec.strides,
        token_dim=spec.token_dim,
        token_attention=spec.token_attention,
        class_token_at=spec.class_token_at,
        drop_path=ends.drop_path,
    )


# timm offers the wanted initialization of these itself.
_TIMM_INITIALIZED = {Family.vit: _build_vit, Family.swin: _build_swin}
_OTHERS = {
    Family.released_vit: _build_released_vit,
    Family.t2t_vit: _build_t2t_vit,
    Family.pvt: _build_released_pvt,
    Family.pvt_v2: build_pvt_v2,
    Family.twins_svt: build_twins,
    Family.twins_pcpvt: build_twins,
    Family.levit: build_levit,
}


def _build_timm(spec: BackboneSpec, ends: Ends) -> nn.Module:
    name = spec.timm_name or ""
    if not timm.is_model(name):
        near = (
            ", ".join(timm.list_models(f"{name.split('_')[0]}_*")[:5]) or "see timm.list_models()"
        )
        raise ValueError(f"timm has no model {name!r}; some it has: {near}")
    sized: dict[str, Any] = {"img_size": ends.image_size} if takes_image_size(name) else {}
    return timm.create_model(
        name,
        in_chans=ends.channels,
        num_classes=ends.num_classes,
        drop_path_rate=ends.drop_path,
        **sized,
    )


def takes_image_size(name: str) -> bool:
    """Whether the architecture fixes its grid at construction."""
    return name.startswith(("vit_", "deit", "swin_", "hiera", "levit", "twins_"))
