"""Which visible-token encoder belongs to which backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.choices import Grouping
from triptych.mim.encoder import VisibleEncoder
from triptych.mim.layout import KNOWN, layout_of, resolve_image_size
from triptych.mim.pvt import VisiblePvt, VisiblePvtV2
from triptych.mim.swin import VisibleSwin
from triptych.mim.twins import VisibleTwins
from triptych.mim.vit import VisibleViT
from triptych.mim.windows import Lattice, Pair


def visible_encoder(
    backbone: nn.Module,
    *,
    lattice: Lattice | str = Lattice.tokens,
    image_size: Pair | None = None,
    grouping: Grouping | str = Grouping.cheapest,
) -> VisibleEncoder:
    """An encoder that shares the modules of ``backbone`` and sees only visible tokens.

    ``lattice`` says how windows lie on grids that are not a multiple of the window, see
    :mod:`triptych.mim.windows`; a backbone without windows ignores it. ``image_size`` is (height,
    width) in pixels, for a PVT v2 whose masks are planned before there are images. ``grouping``
    says how windows share rows of attention, see :mod:`triptych.mim.row_plan`; the latents are the
    same.

    Raises:
        ValueError: there is no such encoder for this type of backbone, or it takes images of
            another size.
    """
    encoder = _encoder(backbone, Lattice(lattice), image_size)
    encoder.grouping = Grouping(grouping)
    return encoder


def _encoder(backbone: nn.Module, lattice: Lattice, image_size: Pair | None) -> VisibleEncoder:
    model = cast(Any, backbone)
    kind = type(backbone)
    if kind is Twins:
        return VisibleTwins(model, image_size, lattice)
    if kind is ReleasedPvt:
        return VisiblePvt(model, image_size)
    if kind is PyramidVisionTransformerV2:
        return VisiblePvtV2(model, image_size)
    if kind in (SwinTransformer, VisionTransformer):
        resolve_image_size(replace(layout_of(backbone), fixed=True), image_size)
        return VisibleSwin(model, lattice) if kind is SwinTransformer else VisibleViT(model)
    raise ValueError(f"no visible-token encoder for {kind.__name__}; there is one for {KNOWN}")
