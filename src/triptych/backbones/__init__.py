"""Backbones by specification: timm models and what nobody ships, published and laptop sizes."""

from triptych.backbones.build import BackboneSpec, Family, build_backbone, total_stride
from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.backbones.t2t_vit import T2TViT

__all__ = [
    "BackboneSpec",
    "Family",
    "ReleasedPvt",
    "ReleasedViT",
    "T2TViT",
    "build_backbone",
    "total_stride",
]
