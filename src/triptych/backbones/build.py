"""Build a backbone from its specification, always with plain LayerNorm.

Other norms are put in afterwards by :func:`triptych.norms.replace_norms`: timm hands its
``norm_layer`` only the width, and a norm that looks at neighbouring tokens needs the grid too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import timm
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class Family(StrEnum):
    """How a backbone is constructed."""

    vit = "vit"
    swin = "swin"
    timm = "timm"


Initialization = Literal["normal", "xavier"]
_TIMM_SCHEME = {"normal": "", "xavier": "jax"}


@dataclass(frozen=True)
class BackboneSpec:
    """What defines a backbone; one entry of ``depths`` and ``num_heads`` for each stage.

    ``window_size`` belongs to Swin; ``timm_name`` to the family ``timm``, which takes any model
    that timm knows and ignores the other fields. ``initialization`` of linear layers: ``normal``
    is the published truncated normal of 0.02, which starves narrow networks; ``xavier`` scales
    with the width (timm's ``jax`` scheme).
    """

    family: Family
    embed_dim: int = 0
    depths: tuple[int, ...] = ()
    num_heads: tuple[int, ...] = ()
    patch_size: int = 4
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    initialization: Initialization = "normal"
    timm_name: str | None = None


def total_stride(spec: BackboneSpec) -> int:
    """Pixels on a side of the region that one token of the last stage stands for."""
    if spec.family is Family.swin:
        return spec.patch_size * 2 ** (len(spec.depths) - 1)
    if spec.family is Family.vit:
        return spec.patch_size
    model: Any = timm.create_model(str(spec.timm_name))
    return int(model.feature_info[-1]["reduction"])


def build_backbone(
    spec: BackboneSpec,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
) -> nn.Module:
    """Return the timm model of ``spec`` for images (B, channels, *image_size).

    Raises:
        ValueError: the image does not divide into tokens of the last stage, or timm does not
            know the name.
    """
    if spec.family is Family.timm:
        return _build_timm(spec, image_size, channels, num_classes, drop_path)
    stride = total_stride(spec)
    if any(side % stride for side in image_size):
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of the backbone's "
            f"total stride {stride}"
        )
    if spec.family is Family.vit:
        return VisionTransformer(
            img_size=image_size,
            patch_size=spec.patch_size,
            in_chans=channels,
            num_classes=num_classes,
            embed_dim=spec.embed_dim,
            depth=spec.depths[0],
            num_heads=spec.num_heads[0],
            mlp_ratio=spec.mlp_ratio,
            qkv_bias=spec.qkv_bias,
            drop_path_rate=drop_path,
            weight_init=_TIMM_SCHEME[spec.initialization],  # type: ignore[arg-type]
        )
    return SwinTransformer(
        img_size=image_size,
        patch_size=spec.patch_size,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=spec.embed_dim,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        drop_path_rate=drop_path,
        weight_init=_TIMM_SCHEME[spec.initialization],
    )


def _build_timm(
    spec: BackboneSpec,
    image_size: tuple[int, int],
    channels: int,
    num_classes: int,
    drop_path: float,
) -> nn.Module:
    name = spec.timm_name or ""
    if not timm.is_model(name):
        near = (
            ", ".join(timm.list_models(f"{name.split('_')[0]}_*")[:5]) or "see timm.list_models()"
        )
        raise ValueError(f"timm has no model {name!r}; some it has: {near}")
    sized: dict[str, Any] = {"img_size": image_size} if _takes_image_size(name) else {}
    return timm.create_model(
        name, in_chans=channels, num_classes=num_classes, drop_path_rate=drop_path, **sized
    )


def _takes_image_size(name: str) -> bool:
    """Whether the architecture fixes its grid at construction."""
    return name.startswith(("vit_", "deit", "swin_", "hiera", "levit"))
