"""Masked image modelling: masks, grouping plans, visible-token and dense encoders, objectives.

Plain PyTorch on timm's models: nothing here needs a training framework.
"""

from triptych.mim.decoder import DecoderSettings, LatentOrder, PixelShuffleHead, TransformerDecoder
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.masks import (
    count_visible,
    mask_from_noise,
    random_unit_mask,
    restore_order,
    sample_masks,
    sample_noise,
)
from triptych.mim.models import GreenMIM, MaskedImageModel, MIMOutput, SimMIM
from triptych.mim.objective import UnitStatistics, hidden_l1, hidden_mse, patchify, unpatchify
from triptych.mim.plans import GroupPlan, attention_cost, plan_groups, published_grouping
from triptych.mim.swin import VisibleSwin
from triptych.mim.token_plan import MaskPlan
from triptych.mim.visible import VisibleEncoder, visible_encoder
from triptych.mim.vit import VisibleViT
from triptych.mim.windows import Lattice

__all__ = [
    "DecoderSettings",
    "DenseMaskedEncoder",
    "GreenMIM",
    "GroupPlan",
    "LatentOrder",
    "Lattice",
    "MIMOutput",
    "MaskPlan",
    "MaskedImageModel",
    "PixelShuffleHead",
    "SimMIM",
    "TransformerDecoder",
    "UnitStatistics",
    "VisibleEncoder",
    "VisibleSwin",
    "VisibleViT",
    "attention_cost",
    "count_visible",
    "hidden_l1",
    "hidden_mse",
    "mask_from_noise",
    "patchify",
    "plan_groups",
    "published_grouping",
    "random_unit_mask",
    "restore_order",
    "sample_masks",
    "sample_noise",
    "unpatchify",
    "visible_encoder",
]
