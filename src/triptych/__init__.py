"""Triptych: Dynamic Token Normalization, GreenMIM and ViT visualization, side by side."""

__version__ = "0.1.0"
