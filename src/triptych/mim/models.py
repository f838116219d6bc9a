"""Masked image models: a backbone, what hides part of the image from it, and the loss.

Shapes: B batch, L mask units in row-major order, M hidden units of the whole batch, E = unit · unit
· channels values of a unit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from triptych.choices import Grouping
from triptych.mim.decoder import DecoderSettings, LatentOrder, PixelShuffleHead, TransformerDecoder
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.encoder import VisibleEncoder
from triptych.mim.layout import layout_of
from triptych.mim.masks import mask_from_noise
from triptych.mim.objective import (
    UnitStatistics,
    hidden_in_batch,
    hidden_units,
    mean_absolute_error,
    mean_squared_error,
    patchify,
    select_patches,
    unpatchify,
)
from triptych.mim.token_plan import MaskPlan
from triptych.mim.visible import visible_encoder
from triptych.mim.windows import Lattice, Pair


class MIMOutput(NamedTuple):
    """What a masked image model returns.

    ``loss`` is 0-d; ``prediction`` (M, E) of the hidden units, image by image in row-major order;
    ``hidden`` (M,) their numbers, see :func:`~triptych.mim.objective.hidden_units`.
    """

    loss: Tensor
    prediction: Tensor
    hidden: Tensor


class MaskedImageModel(nn.Module):
    """Predicts the pixels of hidden mask units.

    Attributes:
        encoder: holds the backbone.
        unit: side of a mask unit in pixels.
        unit_grid: mask units (down, across).
        norm_pixels: whether each unit's pixels are normalised to form the target.
        needs_order: whether ``forward`` needs the rank of each unit's noise.
    """

    encoder: Any  # a module that holds the backbone; each kind of model has its own
    unit: int
    unit_grid: Pair
    norm_pixels: bool
    needs_order: bool = False

    @property
    def backbone(self) -> nn.Module:
        """The backbone that was given, the very same module."""
        return self.encoder.backbone

    def hide(self, noise_BL: Tensor, ratio: float) -> Tensor:
        """Masks bool (B, L), True = hidden, from uniform noise: a ``ratio`` of the units.

        Raises:
            ValueError: the ratio leaves no such mask.
        """
        return mask_from_noise(noise_BL, ratio)

    def plan(self, mask: Tensor) -> MaskPlan | None:
        """What can be worked out from ``mask`` on the CPU before a step; None if nothing."""
        return None

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> MIMOutput:
        """Predict hidden units and compare them with the images.

        Args:
            images: (B, channels, height, width).
            mask: bool (L,) or (B, L), True = hidden.
            plan: ``self.plan(mask)``, if made beforehand.
            ids_restore: rank of each unit's noise, (1, L) or (B, L), where ``needs_order``.

        Raises:
            ValueError: images and mask do not fit the model, or nothing is hidden.
        """
        raise NotImplementedError

    def reconstruct(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> Tensor:
        """Images (B, channels, H, W): visible units as they are, hidden ones as predicted.

        Normalised predictions get the mean and deviation of the true unit back.
        """
        output = self(images, mask, plan, ids_restore)
        patches_BLE = patchify(images, self.unit)
        units = patches_BLE.flatten(0, 1)
        pixels_ME = output.prediction.to(units.dtype)
        if self.norm_pixels:
            pixels_ME = UnitStatistics.of(units[output.hidden]).denormalize(pixels_ME)
        pasted = units.index_copy(0, output.hidden, pixels_ME).view_as(patches_BLE)
        return unpatchify(pasted, self.unit, self.unit_grid)

    def targets(self, images: Tensor, hidden_M: Tensor) -> Tensor:
        """What the prediction of the units ``hidden_M`` is compared with, (M, E)."""
        patches_ME = select_patches(images, self.unit, hidden_M)
        if self.norm_pixels:
            return UnitStatistics.of(patches_ME).normalize(patches_ME)
        return patches_ME


class VisibleUnitModel(MaskedImageModel):
    """A visible-token encoder, and a transformer decoder that predicts the hidden units.

    Args:
        encoder: of the backbone that is pre-trained.
        decoder: its size.
        norm_pixels: normalise the target in each unit.
        prefix_tokens: how many leading latents are no unit's.

    Raises:
        ValueError: the decoder's width does not fit.
    """

    def __init__(
        self,
        encoder: VisibleEncoder,
        decoder: DecoderSettings | None,
        *,
        norm_pixels: bool,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.unit, self.unit_grid = encoder.unit, encoder.unit_grid
        self.norm_pixels = norm_pixels
        layout = layout_of(encoder.backbone)
        values = self.unit**2 * layout.channels
        self.decoder = TransformerDecoder(
            layout.features, self.unit_grid, values, decoder, prefix_tokens
        )
        self.needs_order = self.decoder.order is LatentOrder.published

    def plan(self, mask: Tensor) -> MaskPlan:
        """See :meth:`triptych.mim.encoder.VisibleEncoder.plan`."""
        return self.encoder.plan(mask)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> MIMOutput:
        """See :meth:`MaskedImageModel.forward`."""
        if plan is None:
            plan = self.encoder.plan(mask, (int(images.shape[2]), int(images.shape[3])))
        plan = plan.to(images.device)
        latents_BKC = self.encoder(images, mask, plan)
        mask_BL = mask.reshape(-1, mask.shape[-1]).expand(len(images), -1)
        mask_BL = mask_BL.to(images.device, non_blocking=True)
        hidden_M = hidden_in_batch(plan.hidden, mask_BL)
        prediction_ME = self.decoder(latents_BKC, mask_BL, ids_restore, hidden_M)
        loss = mean_squared_error(prediction_ME, self.targets(images, hidden_M))
        return MIMOutput(loss, prediction_ME, hidden_M)


class GreenMIM(VisibleUnitModel):
    """Visible-token encoder and transformer decoder (GreenMIM, arXiv 2205.13515).

    Args:
        backbone: one that :func:`visible_encoder` takes.
        decoder: its size.
        norm_pixels: normalise the target in each unit.
        lattice, image_size, grouping: see :func:`visible_encoder`.

    Raises:
        ValueError: the backbone is not supported or does not know its image size, or the
            decoder's width does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: DecoderSettings | None = None,
        *,
        norm_pixels: bool = True,
        lattice: Lattice | str = Lattice.tokens,
        image_size: Pair | None = None,
        grouping: Grouping | str = Grouping.cheapest,
    ) -> None:
        encoder = visible_encoder(
            backbone, lattice=lattice, image_size=image_size, grouping=grouping
        )
        super().__init__(encoder, decoder, norm_pixels=norm_pixels)


class SimMIM(MaskedImageModel):
    """Dense encoder with mask tokens, linear head, L1 loss (SimMIM, arXiv 2111.09886).

    Args:
        backbone: one that :class:`DenseMaskedEncoder` takes.
        unit: side of a mask unit in pixels, whole tokens of the last stage; one of them if None.
        norm_pixels: normalise the target in each unit; the published one is raw pixels.
        image_size: see :class:`DenseMaskedEncoder`.

    Raises:
        ValueError: the backbone is not supported, or the unit does not fit it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        unit: int | None = None,
        norm_pixels: bool = False,
        image_size: Pair | None = None,
    ) -> None:
        super().__init__()
        self.encoder = DenseMaskedEncoder(backbone, unit, image_size)
        if self.encoder.unit % self.encoder.stride:
            raise ValueError(
                f"mask unit of {self.encoder.unit} pixels must be a multiple of the total stride "
                f"of {self.encoder.stride}, whose cells the linear head predicts whole"
            )
        self.unit, self.unit_grid = self.encoder.unit, self.encoder.unit_grid
        self.norm_pixels = norm_pixels
        layout = layout_of(backbone)
        self.head = PixelShuffleHead(layout.features, self.encoder.stride, layout.channels)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> MIMOutput:
        """See :meth:`MaskedImageModel.forward`; ``plan`` and ``ids_restore`` are not needed."""
        features_BFC = self.encoder(images, mask)
        _, hidden_M = for_batch(mask, images)
        prediction_ME = self.head(features_BFC, self.encoder.feature_grid, self.unit, hidden_M)
        loss = mean_absolute_error(prediction_ME, self.targets(images, hidden_M))
        return MIMOutput(loss, prediction_ME, hidden_M)


def for_batch(mask: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (B, L) and hidden units (M,) on the images' device, of a mask that was not planned."""
    mask_BL = mask.reshape(-1, mask.shape[-1]).expand(len(images), -1)
    hidden_M = hidden_units(mask_BL)
    device = images.device
    return mask_BL.to(device, non_blocking=True), hidden_M.to(device, non_blocking=True)
