"""Feature maps of any image backbone at several strides, as detectors take them.

Shapes: B batch, N tokens, C channels of a map, H and W its height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d
from timm.models.twins import Twins
from torch import Tensor, nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.backbones.t2t_vit import T2TViT

# Of a plain backbone's stride, from one map (Li et al. 2022, section 3).
PLAIN_FACTORS = (0.25, 0.5, 1, 2)


@dataclass(frozen=True)
class StageMaps:
    """The maps of a backbone's stages, bare: ``read(backbone, images)`` gives (B, C, H, W) for
    each of ``widths``.

    One stage alone, the last, of a plain backbone, all of whose blocks have one stride.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    read: Callable[[Any, Tensor], list[Tensor]]


class FeatureMaps(nn.Module):
    """Maps (B, C, H, W) of images, from the finest to the coarsest, each with a LayerNorm.

    Of a hierarchical backbone the output of each stage (as Liu et al. 2021 detect with Swin); of a
    plain one the simple feature pyramid of Li et al. (2022, ViTDet), from the last map alone:
    transposed convolutions to a quarter and a half of its stride, the map itself, and max-pooling
    to twice its stride. The backbone keeps its weights and loses what no map needs, its classifier
    and the norm before it, so pre-trained weights are loaded and norms replaced beforehand.

    Args:
        backbone: from :func:`triptych.backbones.build.build_backbone`, or a timm model.
        finest: maps of a smaller stride are left out.

    Attributes:
        strides: of each map, in pixels.
        widths: C of each map.

    Raises:
        ValueError: the backbone gives no maps, or none is as coarse as ``finest``.
    """

    def __init__(self, backbone: nn.Module, finest: int = 1) -> None:
        super().__init__()
        stages = stage_maps(backbone)
        _drop_classifier(backbone)
        self.backbone = backbone
        self.read = stages.read
        plain = len(stages.strides) == 1
        branches = _pyramid(stages.widths[0]) if plain else _as_they_are(stages.widths)
        factors = PLAIN_FACTORS if plain else (1,) * len(branches)
        sources = (0,) * len(branches) if plain else range(len(branches))
        taken = []
        for source, factor, (width, branch) in zip(sources, factors, branches, strict=True):
            stride = stages.strides[source] * factor
            if stride >= finest and stride == int(stride):
                taken.append((source, int(stride), width, branch))
        if not taken:
            raise ValueError(
                f"no feature map of a {type(backbone).__name__} has a stride of {finest} or more; "
                f"its strides are {', '.join(map(str, stages.strides))}"
            )
        self.sources = tuple(source for source, *_ in taken)
        self.strides = tuple(stride for _, stride, *_ in taken)
        self.widths = tuple(width for *_, width, _ in taken)
        self.branches = nn.ModuleList(branch for *_, branch in taken)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map for each of ``strides``, of images (B, channels, height, width)."""
        found = self.read(self.backbone, images)
        pairs = zip(self.branches, self.sources, strict=True)
        return [branch(found[source]) for branch, source in pairs]


def stage_maps(backbone: nn.Module) -> StageMaps:
    """How the maps of ``backbone`` are read, before any norm that follows the last block.

    Raises:
        ValueError: it gives no maps.
    """
    if isinstance(backbone, ReleasedPvt):
        return _of_pvt(backbone)
    if isinstance(backbone, ReleasedViT | T2TViT):
        return _of_tokens(backbone)
    model: Any = backbone
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise ValueError(f"a {type(backbone).__name__} gives no feature maps to detect with")
    strides = [int(info["reduction"]) for info in model.feature_info]
    if isinstance(backbone, Twins):  # notes those of its published patches, whatever they are
        patch = int(model.patch_embeds[0].patch_size[0])
        strides = [patch * 2**stage for stage in range(len(strides))]
    widths = [int(info["num_chs"]) for info in model.feature_info]
    # Of blocks with one stride the last.
    last = [i for i, stride in enumerate(strides) if stride not in strides[i + 1 :]]
    kept = tuple(widths[i] for i in last), tuple(strides[i] for i in last)
    return StageMaps(*kept, partial(_timm_maps, last))


def _timm_maps(stages: list[int], model: Any, images: Tensor) -> list[Tensor]:
    return model.forward_intermediates(images, indices=stages, intermediates_only=True)


def _of_pvt(model: ReleasedPvt) -> StageMaps:
    projections = [
        model.get_submodule(f"patch_embed{stage}.proj") for stage in range(1, len(model.grids) + 1)
    ]
    widths, strides, stride = [], [], 1
    for projection in projections:
        assert isinstance(projection, nn.Conv2d)
        stride *= projection.stride[0]
        widths.append(projection.out_channels)
        strides.append(stride)
    return StageMaps(tuple(widths), tuple(strides), _pvt_maps)


def _pvt_maps(model: ReleasedPvt, images: Tensor) -> list[Tensor]:
    stages = model.forward_stages(images)
    return [_as_map(x_BNC, grid) for x_BNC, grid in zip(stages, model.grids, strict=True)]


def _of_tokens(model: ReleasedViT | T2TViT) -> StageMaps:
    if isinstance(model, T2TViT):
        splits: Any = model.tokens_to_token.splits
        stride = math.prod(int(split.stride) for split in splits)
    else:
        stride = int(model.patch_embed.patch_size[0])
    return StageMaps((model.cls_token.shape[-1],), (stride,), _token_map)


def _token_map(model: ReleasedViT | T2TViT, images: Tensor) -> list[Tensor]:
    if isinstance(model, T2TViT):
        grid = model.tokens_to_token.grids[-1]
    else:
        grid = model.patch_embed.grid_size
    return [_as_map(model.forward_tokens(images), grid)]


def _as_map(x_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) of tokens, without any that stand before those of the grid."""
    prefix = x_BNC.shape[1] - grid[0] * grid[1]
    return x_BNC[:, prefix:].transpose(1, 2).unflatten(2, grid)


def _drop_classifier(backbone: nn.Module) -> None:
    """Without them every parameter has a gradient, which distributed training relies on."""
    model: Any = backbone
    if hasattr(model, "prune_intermediate_layers"):
        model.prune_intermediate_layers(prune_norm=True, prune_head=True)
        return
    model.norm = nn.Identity()
    model.head = nn.Identity()


def _as_they_are(widths: tuple[int, ...]) -> list[tuple[int, nn.Module]]:
    return [(width, LayerNorm2d(width)) for width in widths]


def _pyramid(width: int) -> list[tuple[int, nn.Module]]:
    """(C, module) for each of :data:`PLAIN_FACTORS`, from one map of ``width`` channels."""
    half, quarter = width // 2, width // 4
    finest = nn.Sequential(
        nn.ConvTranspose2d(width, half, 2, 2),
        LayerNorm2d(half),
        nn.GELU(),
        nn.ConvTranspose2d(half, quarter, 2, 2),
        LayerNorm2d(quarter),
    )
    finer = nn.Sequential(nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half))
    coarser = nn.Sequential(nn.MaxPool2d(2), LayerNorm2d(width))
    return [(quarter, finest), (half, finer), (width, LayerNorm2d(width)), (width, coarser)]
