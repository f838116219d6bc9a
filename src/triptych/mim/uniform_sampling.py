"""Uniform masking (UM-MAE, Li et al. 2022, arXiv 2205.10063): MAE for hierarchical backbones.

Of each two by two cells one, at random, stays visible. The visible cells, put side by side, are an
image of half the side, which any backbone takes as it is; a share of them may be hidden again by
a mask token ("secondary masking"), since a cell in each neighbourhood makes the task easy. Unlike
the published Swin, whose bias knows where a cell came from, ours sees positions on the small grid.

Shapes: B batch, L cells, K visible cells (L / 4), M hidden cells of the batch, R and S cells of the
small image down and across, u pixels on a side of a cell, C channels, D width of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.mim.decoder import DecoderSettings, TransformerDecoder
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.layout import layout_of, require_image_size
from triptych.mim.models import MaskedImageModel, MIMOutput, for_batch
from triptych.mim.objective import mean_squared_error
from triptych.mim.token_plan import MaskPlan
from triptych.mim.windows import Pair

HIDDEN = 0.75


class UniformEncoder(nn.Module):
    """The dense backbone on the image of half the side that the visible cells make up.

    Args:
        backbone: one that :class:`DenseMaskedEncoder` takes, but no ViT.
        cell: side of a cell in pixels, whole patches that divide the total stride.
        image_size: (height, width) of the whole image, a multiple of twice the total stride.

    Raises:
        ValueError: the backbone is not supported, or a size does not fit.
    """

    def __init__(self, backbone: nn.Module, cell: int, image_size: Pair) -> None:
        super().__init__()
        stride = layout_of(backbone).stride
        height, width = image_size
        if cell < 1 or stride % cell:
            raise ValueError(f"cells of {cell} pixels do not divide the total stride of {stride}")
        if height % (2 * stride) or width % (2 * stride):
            raise ValueError(
                f"images are {height}x{width}, but uniform sampling needs multiples of twice the "
                f"total stride, {2 * stride}"
            )
        self.cell = cell
        self.dense = DenseMaskedEncoder(backbone, cell, (height // 2, width // 2), resized=True)
        self.small_grid = self.dense.unit_grid

    @property
    def backbone(self) -> nn.Module:
        """The backbone that was given, the very same module."""
        return self.dense.backbone

    def forward(self, images: Tensor, mask: Tensor, secondary_BK: Tensor | None = None) -> Tensor:
        """Features (B, F, C) of the small image's cells of the last stage, row-major.

        Args:
            images: (B, channels, height, width).
            mask: bool (L,) or (B, L), True = hidden, with one visible cell in each two by two.
            secondary_BK: bool, True where a visible cell is hidden again; none if None.

        Raises:
            ValueError: the mask leaves another number of cells visible somewhere.
        """
        mask_BL = mask.reshape(-1, mask.shape[-1]).expand(len(images), -1)
        choice_BRS = chosen_cells(mask_BL, self.small_grid).to(images.device, non_blocking=True)
        if secondary_BK is None:
            secondary_BK = torch.zeros(choice_BRS.shape, dtype=torch.bool).flatten(1)
        return self.dense(self.small_images(images, choice_BRS), secondary_BK)

    def small_images(self, images: Tensor, choice_BRS: Tensor) -> Tensor:
        """Images (B, channels, height / 2, width / 2) of the chosen cells."""
        rows, columns = self.small_grid
        u = self.cell
        blocks = images.unflatten(3, (columns, 2, u)).unflatten(2, (rows, 2, u))
        # (B, R, S, 4 cells of a block, channels, row, column)
        cells = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(3, 4)
        index = choice_BRS[..., None, None, None, None].expand(-1, -1, -1, 1, *cells.shape[4:])
        chosen = cells.gather(3, index)[:, :, :, 0]
        return chosen.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class UniformMIM(MaskedImageModel):
    """Uniform sampling with secondary masking, and MAE's decoder (UM-MAE, section 3).

    The last stage's tokens are wider than a cell; a linear layer gives each of them as many
    latents as it has cells.

    Args:
        backbone: see :class:`UniformEncoder`.
        decoder: its size.
        cell: side of a cell in pixels; half the total stride, as published, if None.
        secondary_ratio: share of the visible cells that is hidden again; 0.25 as published.
        norm_pixels: normalise the target in each cell.
        image_size: (height, width), for a backbone that does not know it.

    Raises:
        ValueError: the backbone is not supported, or a size or ratio does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: DecoderSettings | None = None,
        *,
        cell: int | None = None,
        secondary_ratio: float = 0.25,
        norm_pixels: bool = True,
        image_size: Pair | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= secondary_ratio < 1:
            raise ValueError(f"secondary ratio must be in [0, 1), got {secondary_ratio}")
        layout, settings = layout_of(backbone), decoder or DecoderSettings()
        self.unit = layout.stride // 2 if cell is None else cell
        height, width = require_image_size(image_size or layout.image_size, backbone)
        self.encoder = UniformEncoder(backbone, self.unit, (height, width))
        self.unit_grid = (height // self.unit, width // self.unit)
        self.norm_pixels, self.secondary_ratio = norm_pixels, secondary_ratio
        self.needs_order = secondary_ratio > 0
        self.expand = layout.stride // self.unit
        self.spread = nn.Linear(layout.features, settings.dim * self.expand**2)
        values = self.unit**2 * layout.channels
        self.decoder = TransformerDecoder(None, self.unit_grid, values, settings)

    def hide(self, noise_BL: Tensor, ratio: float = HIDDEN) -> Tensor:
        """Hide all but the cell with the least noise of each two by two.

        Raises:
            ValueError: ``ratio`` is not 0.75.
        """
        if ratio != HIDDEN:
            raise ValueError(f"uniform sampling hides {HIDDEN} of the cells, not {ratio}")
        blocks_BRS4 = _blocks(noise_BL, self.encoder.small_grid)
        least = blocks_BRS4.argmin(3, keepdim=True)
        mask = torch.ones(blocks_BRS4.shape, dtype=torch.bool, device=noise_BL.device)
        return _cells(mask.scatter_(3, least, False))

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        plan: MaskPlan | None = None,
        ids_restore: Tensor | None = None,
    ) -> MIMOutput:
        """See :meth:`MaskedImageModel.forward`; the loss is over the cells of ``mask``."""
        secondary_BK = self._secondary(ids_restore, len(images))
        features_BFC = self.encoder(images, mask, secondary_BK)
        rows, columns = self.encoder.dense.feature_grid
        maps = self.spread(features_BFC).transpose(1, 2).unflatten(2, (rows, columns))
        small_BKD = F.pixel_shuffle(maps, self.expand).flatten(2).transpose(1, 2)
        mask_BL, hidden_M = for_batch(mask, images)
        latents_BKD = small_BKD.gather(1, self._order(mask_BL, small_BKD))
        prediction_ME = self.decoder(latents_BKD, mask_BL, None, hidden_M)
        loss = mean_squared_error(prediction_ME, self.targets(images, hidden_M))
        return MIMOutput(loss, prediction_ME, hidden_M)

    def _secondary(self, ids_restore: Tensor | None, batch: int) -> Tensor | None:
        """Bool (B, K): a random share of the visible cells, those of the last noise in a block.

        The greatest of a block's noise says nothing about which cell has the least, so that the
        two maskings are independent.

        Raises:
            ValueError: ``ids_restore`` is missing.
        """
        if not self.secondary_ratio:
            return None
        if ids_restore is None:
            raise ValueError(
                f"secondary_ratio={self.secondary_ratio} hides visible cells by the order of the "
                f"noise, ids_restore; it is missing"
            )
        greatest_BK = _blocks(ids_restore, self.encoder.small_grid).amax(3).flatten(1)
        count = int(greatest_BK.shape[1] * self.secondary_ratio)
        rank_BK = greatest_BK.argsort(1, descending=True).argsort(1)
        return (rank_BK < count).expand(batch, -1)

    def _order(self, mask_BL: Tensor, small_BKD: Tensor) -> Tensor:
        """Index (B, K, D) into the small image's cells of the visible cells in row-major order."""
        rows, columns = self.encoder.small_grid
        across = torch.arange(columns, device=mask_BL.device).repeat_interleave(2)
        down = torch.arange(rows, device=mask_BL.device).repeat_interleave(2)
        number_L = (down[:, None] * columns + across).flatten()
        # Hidden cells are sorted behind all visible ones, whose order stays.
        first_BK = mask_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, : rows * columns]
        return number_L[first_BK][..., None].expand(-1, -1, small_BKD.shape[2])


def chosen_cells(mask_BL: Tensor, small_grid: Pair) -> Tensor:
    """Which cell (0 to 3, row-major) of each two by two is visible, int64 (B, R, S).

    Raises:
        ValueError: not just one is, somewhere.
    """
    visible_BRS4 = ~_blocks(mask_BL, small_grid)
    counts = visible_BRS4.sum(3)
    if not bool((counts == 1).all()):
        raise ValueError(
            f"a uniform mask leaves 1 of each 2x2 cells visible, this one {int(counts.min())} to "
            f"{int(counts.max())}"
        )
    return visible_BRS4.to(torch.uint8).argmax(3)


def _blocks(values_BL: Tensor, small_grid: Pair) -> Tensor:
    """(B, L) of cells as (B, R, S, 4) of blocks."""
    rows, columns = small_grid
    blocks = values_BL.view(-1, rows, 2, columns, 2)
    return blocks.transpose(2, 3).flatten(3)


def _cells(blocks_BRS4: Tensor) -> Tensor:
    """The reverse of :func:`_blocks`."""
    return blocks_BRS4.unflatten(3, (2, 2)).transpose(2, 3).flatten(1)
