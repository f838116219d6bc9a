"""What defines a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import timm

from triptych.choices import Family

Initialization = Literal["normal", "xavier"]
ClassToken = Literal["first", "late"]
TokenAttention = Literal["performer", "transformer"]


@dataclass(frozen=True)
class BackboneSpec:
    """What defines a backbone; one entry of ``depths`` and ``num_heads`` for each stage.

    Widths: ``embed_dim`` for a backbone of one width and for Swin, which doubles it at each
    stage; ``embed_dims`` for the other hierarchical ones. ``patch_size`` is the stride of the
    patch embedding (4 alone for PVT v2) or of LeViT's stem (8 or 16). ``window_size`` belongs to
    Swin and Twins-SVT; ``sr_ratios``, by which keys and values are reduced, to PVT and Twins;
    ``mlp_ratios``, where given, stand for one ``mlp_ratio`` in each stage; ``key_dim`` and
    ``attention_ratio`` (value over key width) to LeViT; ``kernels``, ``strides``, ``token_dim``
    and ``token_attention`` to the tokens-to-token stages of T2T-ViT. ``class_token`` late: it
    joins before the last two blocks, for ``released_vit`` and ``t2t_vit``. ``timm_name`` belongs
    to the family ``timm``, which takes any model that timm knows and ignores the other fields.
    ``block_size``, ``random_blocks`` (BigBird) and ``hashes`` (Reformer) belong to the encoders of
    sequences, see :mod:`triptych.backbones.sequence`. ``initialization`` of linear layers:
    ``normal`` is the published one, for most a truncated normal of 0.02, which starves narrow
    networks; ``xavier`` scales with the width.
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
    embed_dims: tuple[int, ...] = ()
    sr_ratios: tuple[int, ...] = ()
    mlp_ratios: tuple[float, ...] = ()
    key_dim: int = 16
    attention_ratio: float = 2.0
    kernels: tuple[int, ...] = (7, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2)
    token_dim: int = 64
    token_attention: TokenAttention = "performer"
    class_token: ClassToken = "first"
    block_size: int = 64
    random_blocks: int = 3
    hashes: int = 1

    @property
    def stage_mlp_ratios(self) -> tuple[float, ...]:
        """One MLP ratio for each stage."""
        return self.mlp_ratios or (self.mlp_ratio,) * len(self.depths)

    @property
    def class_token_at(self) -> int:
        """Index of the block before which the class token joins the patches."""
        return max(0, self.depths[0] - 2) if self.class_token == "late" else 0


def total_stride(spec: BackboneSpec) -> int:
    """Pixels on a side of the region that one token of the last stage stands for."""
    if spec.family in (Family.vit, Family.released_vit):
        return spec.patch_size
    if spec.family is Family.t2t_vit:
        stride = 1
        for factor in spec.strides:
            stride *= factor
        return stride
    if spec.family is Family.timm:
        model: Any = timm.create_model(str(spec.timm_name))
        return int(model.feature_info[-1]["reduction"])
    return spec.patch_size * 2 ** (len(spec.depths) - 1)


def image_multiple(spec: BackboneSpec) -> int:
    """What the sides of an image must be multiples of.

    LeViT halves odd grids by rounding up (14, 7, 4), so only its stem must divide.
    """
    return spec.patch_size if spec.family is Family.levit else total_stride(spec)


@dataclass(frozen=True)
class Ends:
    """What a run asks of its backbone: images (channels, *image_size) in, classes out.

    ``drop_path`` is the rate of the last block; that of the first is 0.
    """

    image_size: tuple[int, int]
    channels: int
    num_classes: int
    drop_path: float
