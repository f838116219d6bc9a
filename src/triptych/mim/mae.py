"""Masked autoencoders for a plain vision transformer (MAE, He et al., CVPR 2022).

Shapes: B batch, L patches, K visible ones, A prefix tokens, C channels.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.mim.decoder import DecoderSettings, TransformerDecoder, sincos_positions
from triptych.mim.layout import layout_of
from triptych.mim.models import MaskedImageModel, MIMOutput, for_batch
from triptych.mim.objective import mean_squared_error
from triptych.mim.token_plan import MaskPlan
from triptych.mim.vit import VisibleViT

PUBLISHED_DECODER = DecoderSettings(dim=512, depth=8, num_heads=16)


class MAE(MaskedImageModel):
    """A ViT on visible patches, and a decoder that the class token takes part in (section 3).

    A mask unit is one patch. The encoder's positions become the fixed sine-cosine ones of the
    paper, which pre-training does not change; fine-tuning may.

    Args:
        backbone: timm's VisionTransformer with position embeddings.
        decoder: its size; the published one if None.
        norm_pixels: normalise the target in each patch.

    Raises:
        ValueError: another backbone, one without position embeddings, or widths that do not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: DecoderSettings | None = None,
        *,
        norm_pixels: bool = True,
    ) -> None:
        super().__init__()
        if type(backbone) is not VisionTransformer:
            raise ValueError(
                f"MAE's encoder is timm's VisionTransformer, got a {type(backbone).__name__}"
            )
        self.encoder = VisibleViT(backbone, keep_prefix=True)
        self.unit, self.unit_grid = self.encoder.unit, self.encoder.unit_grid
        self.norm_pixels = norm_pixels
        fix_positions(backbone)
        layout = layout_of(backbone)
        self.decoder = TransformerDecoder(
            layout.features,
            self.unit_grid,
            self.unit**2 * layout.channels,
            decoder or PUBLISHED_DECODER,
            backbone.num_prefix_tokens,
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
        """See :meth:`MaskedImageModel.forward`; ``ids_restore`` is not needed."""
        latents_BKC = self.encoder(images, mask, plan)
        mask_BL, hidden_M = for_batch(mask, images)
        prediction_ME = self.decoder(latents_BKC, mask_BL, None, hidden_M)
        loss = mean_squared_error(prediction_ME, self.targets(images, hidden_M))
        return MIMOutput(loss, prediction_ME, hidden_M)


def fix_positions(backbone: VisionTransformer) -> None:
    """Make the position embeddings the fixed sine-cosine ones, 0 for prefix tokens.

    Raises:
        ValueError: the backbone has none, or a width that is no multiple of 4.
    """
    table = backbone.pos_embed
    if table is None:
        raise ValueError("MAE needs a ViT with position embeddings; this one has none")
    positions_TC = sincos_positions(table.shape[2], backbone.patch_embed.grid_size)
    with torch.no_grad():
        table.zero_()
        table[0, table.shape[1] - len(positions_TC) :] = positions_TC
    table.requires_grad_(False)
