"""Filters: what one coordinate of a token embedding looks for in the pixels.

At the first grid they are the kernels of the patch embedding. For a later grid, or a stem of
several layers, the linear maps on the way are composed to one convolution from the pixels
(effective filters); norms, activations, attention and MLPs on the way are left out, but for a
BatchNorm's scale, which belongs to the convolution before it.

Shapes: F filters (coordinates of the token), C image channels, Y and X pixels, KH and KW pixels of
a filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import PatchEmbed
from timm.models.levit import ConvNorm, Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.backbones.t2t_vit import T2TViT
from triptych.visualization.block_layout import pair
from triptych.visualization.stage_reduction import Pair


@dataclass(frozen=True)
class PatchFilters:
    """A convolution from pixels to token coordinates.

    Attributes:
        weight: (F, C, KH, KW).
        stride, padding: (height, width) in pixels.
        composed: of how many linear maps.
    """

    weight: Tensor
    stride: Pair
    padding: Pair = (0, 0)
    composed: int = 1

    @property
    def count(self) -> int:
        return len(self.weight)

    @property
    def size(self) -> Pair:
        """(height, width) of a filter in pixels."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def tiles(self) -> bool:
        """Whether patches neither overlap nor leave gaps."""
        return self.size == self.stride and self.padding == (0, 0)

    def grid(self, image_size: Pair) -> Pair:
        """(rows, columns) of patches of an image of ``image_size`` pixels."""
        rows, cols = (
            (image_size[axis] + 2 * self.padding[axis] - self.size[axis]) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        return rows, cols

    def then(self, after: PatchFilters) -> PatchFilters:
        """This convolution followed by ``after``, whose stride and padding are in tokens."""
        # A filter of the second is a map of first-layer filters, each laid down at its place.
        weight = nn.functional.conv_transpose2d(after.weight, self.weight, stride=self.stride)
        stride = (self.stride[0] * after.stride[0], self.stride[1] * after.stride[1])
        padding = (
            self.padding[0] + self.stride[0] * after.padding[0],
            self.padding[1] + self.stride[1] * after.padding[1],
        )
        return PatchFilters(weight, stride, padding, self.composed + after.composed)


def patch_filters(model: nn.Module, stage: int = 0) -> PatchFilters:
    """The filters of the tokens that enter ``stage``; effective ones where several maps lead there.

    Detached copies are not made: weights are those of the model, without gradient.

    Raises:
        ValueError: a backbone that is not known, no such stage, or one whose tokens no linear map
            makes (LeViT behind its first stage).
    """
    steps = _steps(model)
    if not 0 <= stage < len(steps):
        raise ValueError(
            f"stage={stage} has no filters in a {type(model).__name__}; "
            f"linear maps lead to the stages 0 to {len(steps) - 1}"
        )
    filters, *rest = [one for step in steps[: stage + 1] for one in step]
    for one in rest:
        filters = filters.then(one)
    return filters


def has_filters(model: nn.Module) -> bool:
    """Whether :func:`patch_filters` knows the model: linear maps lead from pixels to its tokens."""
    known = (VisionTransformer, ReleasedViT, SwinTransformer, Twins, ReleasedPvt, T2TViT)
    if isinstance(model, (PyramidVisionTransformerV2, Levit)):
        return True
    embed = getattr(model, "patch_embed", None)
    plain = embed is None or isinstance(embed, PatchEmbed)
    return isinstance(model, known) and plain


def _steps(model: Any) -> list[list[PatchFilters]]:
    """The linear maps that lead to each stage from the one before; to the first, from pixels."""
    if not has_filters(model):
        raise ValueError(f"the filters of a {type(model).__name__} are not known")
    if isinstance(model, (VisionTransformer, ReleasedViT)):
        return [[_of(model.patch_embed.proj)]]
    if isinstance(model, SwinTransformer):
        merges: list[Any] = [layer.downsample for layer in list(model.layers)[1:]]
        return [[_of(model.patch_embed.proj)], *([_of_merging(one)] for one in merges)]
    if isinstance(model, Twins):
        return [[_of(embed.proj)] for embed in model.patch_embeds]
    if isinstance(model, ReleasedPvt):
        names = [f"patch_embed{stage + 1}.proj" for stage in range(len(model.depths))]
        return [[_of(model.get_submodule(name))] for name in names]
    if isinstance(model, PyramidVisionTransformerV2):
        later: list[Any] = [stage.downsample for stage in list(model.stages)[1:]]
        return [[_of(model.patch_embed.proj)], *([_of(one.proj)] for one in later)]
    if isinstance(model, Levit):
        return [[_of_conv_norm(one) for one in model.stem.modules() if isinstance(one, ConvNorm)]]
    return _of_tokens_to_token(model.tokens_to_token)


def _of(conv: Any) -> PatchFilters:
    return PatchFilters(conv.weight.detach(), pair(conv.stride), pair(conv.padding))


def _of_conv_norm(layer: ConvNorm) -> PatchFilters:
    bn, plain = layer.bn, _of(layer.linear)
    assert bn.running_var is not None
    scale_F = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
    return PatchFilters(plain.weight * scale_F[:, None, None, None], plain.stride, plain.padding)


def _of_merging(merging: Any) -> PatchFilters:
    """Swin's merging: channels of the 2 x 2 parents side by side, counted down, then across."""
    weight = merging.reduction.weight.detach()
    weight_FXYC = weight.view(len(weight), 2, 2, -1)
    return PatchFilters(weight_FXYC.permute(0, 3, 2, 1), (2, 2))


def _of_tokens_to_token(module: Any) -> list[list[PatchFilters]]:
    """Soft splits followed by the values of each token stage, and by the projection at the end."""
    linear = [(stage.attn.kqv if hasattr(stage.attn, "kqv") else stage.attn.qkv) for stage in
              module.stages]  # fmt: skip
    weights = [one.weight.detach().chunk(3)[2] for one in linear] + [module.project.weight.detach()]
    return [
        [
            PatchFilters(
                weight.unflatten(1, (-1, *pair(split.kernel_size))),
                pair(split.stride),
                pair(split.padding),
            )
        ]
        for weight, split in zip(weights, module.splits, strict=True)
    ]
