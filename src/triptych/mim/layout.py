"""What masks and decoders need to know of a backbone: strides, sizes and widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.mim.encoder import check_patch_embedding
from triptych.mim.windows import Pair

KNOWN = (
    "timm's SwinTransformer, VisionTransformer, Twins and PyramidVisionTransformerV2, and our "
    "ReleasedPvt"
)


@dataclass(frozen=True)
class Layout:
    """Stride ``patch`` of the first stage, which the others halve, and ``stages`` of them.

    ``image_size`` (height, width) in pixels is what the backbone was built for, None where it
    does not know; ``fixed`` if it takes no other. ``channels`` of the images, ``width`` of the
    first stage's tokens, ``features`` of the last one's.
    """

    patch: int
    stages: int
    image_size: Pair | None
    fixed: bool
    channels: int
    width: int
    features: int

    @property
    def stride(self) -> int:
        """Pixels on a side of a token of the last stage."""
        return self.patch * 2 ** (self.stages - 1)


def layout_of(backbone: nn.Module) -> Layout:
    """The layout of one of the :data:`KNOWN` backbones.

    Raises:
        ValueError: it is another, or its patches overlap where they must not.
    """
    model = cast(Any, backbone)
    if type(backbone) is PyramidVisionTransformerV2:
        proj, stages = model.patch_embed.proj, len(model.stages)
        return _layout(proj, stages, None, False, model.num_features)
    if type(backbone) is Twins:
        embed = model.patch_embeds[0]
        size = (int(embed.img_size[0]), int(embed.img_size[1]))
        return _layout(embed.proj, len(model.blocks), size, False, model.num_features)
    if type(backbone) is ReleasedPvt:
        proj, (rows, columns) = model.patch_embed1.proj, model.grids[0]
        patch = proj.stride[0]
        size = (rows * patch, columns * patch)
        return _layout(proj, len(model.depths), size, True, model.norm.weight.shape[0])
    if type(backbone) in (SwinTransformer, VisionTransformer):
        plain = check_patch_embedding(backbone)
        size = (int(plain.img_size[0]), int(plain.img_size[1]))
        stages = len(model.layers) if type(backbone) is SwinTransformer else 1
        return _layout(plain.proj, stages, size, plain.strict_img_size, model.num_features)
    raise ValueError(f"unknown layout of {type(backbone).__name__}; known are {KNOWN}")


def resolve_image_size(layout: Layout, image_size: Pair | None) -> Pair | None:
    """The size that masks are drawn for, None if nobody knows it.

    Raises:
        ValueError: ``image_size`` is not one that the backbone takes.
    """
    if image_size is None:
        return layout.image_size
    if layout.fixed and image_size != layout.image_size:
        raise ValueError(
            f"image_size={image_size[0]}x{image_size[1]}, but the backbone was built for "
            f"{_text(layout.image_size)}"
        )
    return image_size


def require_image_size(image_size: Pair | None, backbone: nn.Module) -> Pair:
    """``image_size``, if it is known.

    Raises:
        ValueError: it is None.
    """
    if image_size is None:
        raise ValueError(
            f"a {type(backbone).__name__} does not know the size of its images; give "
            f"image_size=(height, width) in pixels"
        )
    return image_size


def _layout(
    proj: nn.Conv2d, stages: int, image_size: Pair | None, fixed: bool, features: int
) -> Layout:
    return Layout(
        patch=int(proj.stride[0]),
        stages=stages,
        image_size=image_size,
        fixed=bool(fixed),
        channels=proj.in_channels,
        width=proj.out_channels,
        features=int(features),
    )


def _text(size: Pair | None) -> str:
    return "any size" if size is None else f"{size[0]}x{size[1]}"
