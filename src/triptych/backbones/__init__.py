"""Backbones by name: timm models in published and in laptop sizes."""

from triptych.backbones.build import BackboneSpec, build_backbone, total_stride

__all__ = ["BackboneSpec", "build_backbone", "total_stride"]
