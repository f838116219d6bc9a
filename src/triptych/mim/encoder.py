"""What the visible-token encoders of all backbones have in common.

Shapes: B batch, P plans (1 for the whole batch, or B), L mask units, K visible units, N visible
tokens, T tokens of the grid, C channels, E = channels · patch height · patch width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.choices import Grouping
from triptych.mim.token_plan import MaskPlan, StagePlan, StageShape, check_mask, plan_mask
from triptych.mim.windows import Lattice, Pair, resolve
from triptych.norms import DynamicTokenNorm


class VisibleEncoder(nn.Module):
    """A backbone that sees only the visible tokens; it shares the backbone's modules.

    Attributes:
        backbone: the timm model, the very one that was given.
        unit: side of a mask unit in pixels.
        grouping: how windows share rows of attention, see :mod:`triptych.mim.row_plan`.
    """

    grouping: Grouping = Grouping.cheapest

    def __init__(self, backbone: nn.Module, unit: int, lattice: Lattice) -> None:
        super().__init__()
        self.backbone = backbone
        self.unit = unit
        self.lattice = lattice

    @property
    def embed(self) -> PatchEmbed:
        """The backbone's patch embedding."""
        return cast(PatchEmbed, self.backbone.patch_embed)

    def stage_shapes(self, image_size: Pair) -> tuple[StageShape, ...]:
        """Grid, channels and windows of each stage for images of ``image_size`` pixels."""
        raise NotImplementedError

    def encode(self, images: Tensor, plan: MaskPlan) -> Tensor:
        """Latents (B, K, C) of the visible units."""
        raise NotImplementedError

    @property
    def image_size(self) -> Pair:
        """Pixels (height, width) that the backbone was built for."""
        height, width = cast(Pair, self.embed.img_size)
        return int(height), int(width)

    @property
    def fixed_size(self) -> bool:
        """Whether the backbone takes images of no other size."""
        return self.embed.strict_img_size

    @property
    def unit_grid(self) -> Pair:
        """Mask units (down, across) of an image of the size that the backbone was built for."""
        return self.image_size[0] // self.unit, self.image_size[1] // self.unit

    def plan(self, mask: Tensor, image_size: Pair | None = None) -> MaskPlan:
        """Plan a mask on the CPU; give it beforehand and no training step waits for it.

        Args:
            mask: bool (L,) or (B, L), True = hidden, units in row-major order.
            image_size: pixels (height, width), if not those that the backbone was built for.

        Raises:
            ValueError: the mask or the image size does not fit, see :func:`check_mask`.
        """
        size = self.image_size if image_size is None else image_size
        self._check_size(size)
        grid = size[0] // self.unit, size[1] // self.unit
        mask_PL = check_mask(mask, grid[0] * grid[1])
        lattice = resolve(self.lattice, hidden=bool(mask_PL.any()))
        return plan_mask(mask_PL, grid, self.stage_shapes(size), lattice, self.grouping)

    def forward(self, images: Tensor, mask: Tensor, plan: MaskPlan | None = None) -> Tensor:
        """Encode the visible part of images.

        Args:
            images: (B, channels, height, width).
            mask: bool (L,) or (B, L), True = hidden, units in row-major order; every sample
                hides the same number.
            plan: ``self.plan(mask)``, if made beforehand; then ``mask`` is not read.

        Returns:
            Latents (B, K, C) of the visible units in row-major order, after the final norm.

        Raises:
            ValueError: images, mask or plan do not fit each other.
        """
        size = int(images.shape[2]), int(images.shape[3])
        if plan is None:
            plan = self.plan(mask, size)
        self._check_size(size)
        self._check_plan(plan, len(images), size)
        if plan.stages[0].tokens.device != images.device:
            plan = plan.to(images.device)
        return self.encode(images, plan)

    def _check_size(self, size: Pair) -> None:
        if self.fixed_size and size != self.image_size:
            raise ValueError(
                f"images are {size[0]}x{size[1]}, but the backbone was built for "
                f"{self.image_size[0]}x{self.image_size[1]}"
            )
        if any(side % self.unit for side in size):
            raise ValueError(
                f"images are {size[0]}x{size[1]}, but both sides must be multiples of the mask "
                f"unit of {self.unit} pixels"
            )

    def _check_plan(self, plan: MaskPlan, batch: int, size: Pair) -> None:
        units = size[0] // self.unit * (size[1] // self.unit)
        if plan.num_units != units or plan.num_plans not in (1, batch):
            raise ValueError(
                f"the plan is for masks ({plan.num_plans}, {plan.num_units}), but there are "
                f"{batch} images of {units} mask units"
            )


def check_patch_embedding(backbone: nn.Module) -> PatchEmbed:
    """The backbone's patch embedding, if it has square patches that do not overlap.

    Raises:
        ValueError: it has not.
    """
    embed = backbone.patch_embed
    name = type(backbone).__name__
    if not isinstance(embed, PatchEmbed) or embed.proj.kernel_size != embed.proj.stride:
        raise ValueError(
            f"{name} embeds patches with {type(embed).__name__}; visible tokens need timm's "
            f"PatchEmbed, whose patches do not overlap"
        )
    height, width = embed.patch_size
    if height != width:
        raise ValueError(f"{name} has patches of {height}x{width} pixels; they must be square")
    return embed


def embed_visible(embed: Any, images: Tensor, tokens_PN: Tensor, visible: Tensor | None) -> Tensor:
    """Patch embedding of the visible patches alone, (B, N, C); other pixels are not read.

    A convolution whose kernel equals its stride is a product with each patch. ``embed`` has the
    convolution as ``proj`` and a ``norm``, as the patch embeddings of timm's backbones have.
    """
    side = embed.proj.stride[0]
    patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    patches_BHWE = patches.permute(0, 2, 4, 1, 3, 5)
    columns = patches_BHWE.shape[2]
    sample_P1 = torch.arange(len(tokens_PN), device=images.device)[:, None]
    if len(tokens_PN) == 1:
        chosen = patches_BHWE[:, tokens_PN[0] // columns, tokens_PN[0] % columns]
    else:
        chosen = patches_BHWE[sample_P1, tokens_PN // columns, tokens_PN % columns]
    x_BNC = F.linear(chosen.flatten(2), embed.proj.weight.flatten(1), embed.proj.bias)
    return apply_norm(embed.norm, x_BNC, visible)


def visible_tokens(stage: StagePlan) -> Tensor | None:
    """The stage's visible tokens for a norm: bool (T,) or (B, T); None if all are."""
    if stage.tokens.shape[1] == stage.visible.shape[1]:
        return None
    return stage.visible[0] if len(stage.visible) == 1 else stage.visible


def apply_norm(norm: nn.Module, x_BNC: Tensor, visible: Tensor | None) -> Tensor:
    """Normalise visible tokens; a norm that looks at neighbours is told where they lie."""
    if isinstance(norm, DynamicTokenNorm):
        return norm(x_BNC, visible=visible)
    return norm(x_BNC)
