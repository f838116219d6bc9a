"""Masked image models: a backbone, what hides part of the image from it, and the loss.

Shapes: B batch, L mask units in row-major order, E = unit · unit · channels values of a unit.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from triptych.mim.decoder import DecoderSettings, LatentOrder, PixelShuffleHead, TransformerDecoder
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.encoder import check_patch_embedding
from triptych.mim.objective import UnitStatistics, hidden_l1, hidden_mse, patchify, unpatchify
from triptych.mim.token_plan import MaskPlan
from triptych.mim.visible import visible_encoder
from triptych.mim.windows import Lattice, Pair


class MIMOutput(NamedTuple):
    """What a masked image model returns: loss (0-d), prediction (B, L, E), mask (B, L)."""

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MaskedImageModel(nn.Module):
    """Predicts the pixels of hidden mask units.

    Attributes:
        unit: side of a mask unit in pixels.
        unit_grid: mask units (down, across).
        norm_pixels: whether each unit's pixels are normalised to form the target.
    """

    unit: int
    unit_grid: Pair
    norm_pixels: bool

    @property
    def backbone(self) -> nn.Module:
        """The backbone that was given, the very same module."""
        raise NotImplementedError

    def plan(self, mask: Tensor) -> MaskPlan | None:
        """What can be worked out from ``mask`` on the CPU before a step; None if nothing."""
        raise NotImplementedError

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
            ids_restore: rank of each unit's noise, for GreenMIM's published order only.

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
        pixels_BLE = output.prediction.to(patches_BLE.dtype)
        if self.norm_pixels:
            pixels_BLE = UnitStatistics.of(patches_BLE).denormalize(pixels_BLE)
        pasted = pixels_BLE.where(output.mask[..., None], patches_BLE)
        return unpatchify(pasted, self.unit, self.unit_grid)

    def targets(self, images: Tensor) -> Tensor:
        """What the prediction is compared with, (B, L, E)."""
        patches_BLE = patchify(images, self.unit)
        if self.norm_pixels:
            return UnitStatistics.of(patches_BLE).normalize(patches_BLE)
        return patches_BLE


class GreenMIM(MaskedImageModel):
    """Visible-token encoder and transformer decoder (GreenMIM, arXiv 2205.13515; MAE for ViT).

    Args:
        backbone: one that :func:`visible_encoder` takes.
        decoder: its size.
        norm_pixels: normalise the target in each unit.
        lattice: see :func:`visible_encoder`.

    Raises:
        ValueError: the backbone is not supported, or the decoder's width does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: DecoderSettings | None = None,
        *,
        norm_pixels: bool = True,
        lattice: Lattice | str = Lattice.tokens,
    ) -> None:
        super().__init__()
        self.encoder = visible_encoder(backbone, lattice=lattice)
        self.unit, self.unit_grid = self.encoder.unit, self.encoder.unit_grid
        self.norm_pixels = norm_pixels
        values = self.unit**2 * image_channels(backbone)
        self.decoder = TransformerDecoder(
            feature_channels(backbone), self.unit_grid, values, decoder
        )

    @property
    def backbone(self) -> nn.Module:
        """See :class:`MaskedImageModel`."""
        return self.encoder.backbone

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
        if self.decoder.order is LatentOrder.published and ids_restore is None:
            raise ValueError("order='published' places latents by ids_restore; it is missing")
        latents_BKC = self.encoder(images, mask, plan)
        mask_BL = _for_batch(mask, images)
        prediction_BLE = self.decoder(latents_BKC, mask_BL, ids_restore)
        loss = hidden_mse(prediction_BLE, self.targets(images), mask_BL)
        return MIMOutput(loss, prediction_BLE, mask_BL)


class SimMIM(MaskedImageModel):
    """Dense encoder with mask tokens, linear head, L1 loss (SimMIM, arXiv 2111.09886).

    Args:
        backbone: one that :class:`DenseMaskedEncoder` takes.
        unit: side of a mask unit in pixels; a token of the last stage if None.
        norm_pixels: normalise the target in each unit; the published one is raw pixels.

    Raises:
        ValueError: the backbone is not supported, or the unit does not fit it.
    """

    def __init__(
        self, backbone: nn.Module, *, unit: int | None = None, norm_pixels: bool = False
    ) -> None:
        super().__init__()
        self.encoder = DenseMaskedEncoder(backbone, unit)
        self.unit, self.unit_grid = self.encoder.unit, self.encoder.unit_grid
        self.norm_pixels = norm_pixels
        self.head = PixelShuffleHead(
            feature_channels(backbone), self.encoder.stride, image_channels(backbone)
        )

    @property
    def backbone(self) -> nn.Module:
        """See :class:`MaskedImageModel`."""
        return self.encoder.backbone

    def plan(self, mask: Tensor) -> None:
        """Nothing: every token is computed."""
        return

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> MIMOutput:
        """See :meth:`MaskedImageModel.forward`; ``plan`` and ``ids_restore`` are not needed."""
        features_BFC = self.encoder(images, mask)
        pixels = self.head(features_BFC, self.encoder.feature_grid)
        prediction_BLE = patchify(pixels, self.unit)
        mask_BL = _for_batch(mask, images)
        loss = hidden_l1(prediction_BLE, self.targets(images), mask_BL)
        return MIMOutput(loss, prediction_BLE, mask_BL)


def feature_channels(backbone: nn.Module) -> int:
    """Channels of the tokens that the backbone ends with."""
    return cast(int, backbone.num_features)


def image_channels(backbone: nn.Module) -> int:
    """Channels of the images that the backbone takes."""
    return check_patch_embedding(backbone).proj.in_channels


def _for_batch(mask: Tensor, images: Tensor) -> Tensor:
    mask = mask.to(images.device, non_blocking=True)
    return mask.reshape(-1, mask.shape[-1]).expand(len(images), -1)
