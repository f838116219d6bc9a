"""Which visible-token encoder belongs to which backbone."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.mim.encoder import VisibleEncoder
from triptych.mim.swin import VisibleSwin
from triptych.mim.vit import VisibleViT
from triptych.mim.windows import Lattice

SUPPORTED = (SwinTransformer, VisionTransformer)


def visible_encoder(
    backbone: nn.Module, *, lattice: Lattice | str = Lattice.tokens
) -> VisibleEncoder:
    """An encoder that shares the modules of ``backbone`` and sees only visible tokens.

    ``lattice`` says how windows lie on grids that are not a multiple of the window, see
    :mod:`triptych.mim.windows`; a backbone without windows ignores it.

    Raises:
        ValueError: there is no such encoder for this type of backbone.
    """
    if type(backbone) is SwinTransformer:
        return VisibleSwin(backbone, lattice)
    if type(backbone) is VisionTransformer:
        return VisibleViT(backbone)
    names = ", ".join(supported.__name__ for supported in SUPPORTED)
    raise ValueError(
        f"no visible-token encoder for {type(backbone).__name__}; there is one for timm's {names}"
    )
