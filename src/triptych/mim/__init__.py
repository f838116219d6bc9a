"""Masked image modelling: masks, grouping plans, visible-token and dense encoders, objectives.

Plain PyTorch on timm's models: nothing here needs a training framework.
"""

from triptych.mim.decoder import DecoderSettings, LatentOrder, PixelShuffleHead, TransformerDecoder
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.mae import MAE
from triptych.mim.masks import (
    count_visible,
    mask_from_noise,
    random_unit_mask,
    restore_order,
    sample_masks,
    sample_noise,
)
from triptych.mim.models import GreenMIM, MaskedImageModel, MIMOutput, SimMIM
from triptych.mim.objective import (
    UnitStatistics,
    hidden_units,
    mean_absolute_error,
    mean_squared_error,
    patchify,
    select_patches,
    unpatchify,
)
from triptych.mim.plans import GroupPlan, attention_cost, plan_groups, published_grouping
from triptych.mim.pvt import VisiblePvt, VisiblePvtV2
from triptych.mim.swin import VisibleSwin
from triptych.mim.token_plan import MaskPlan
from triptych.mim.twins import VisibleTwins
from triptych.mim.uniform_sampling import UniformMIM
from triptych.mim.visible import VisibleEncoder, visible_encoder
from triptych.mim.vit import VisibleViT
from triptych.mim.windows import Lattice

__all__ = [
    "MAE",
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
    "UniformMIM",
    "UnitStatistics",
    "VisibleEncoder",
    "VisiblePvt",
    "VisiblePvtV2",
    "VisibleSwin",
    "VisibleTwins",
    "VisibleViT",
    "attention_cost",
    "count_visible",
    "hidden_units",
    "mask_from_noise",
    "mean_absolute_error",
    "mean_squared_error",
    "patchify",
    "plan_groups",
    "published_grouping",
    "random_unit_mask",
    "restore_order",
    "sample_masks",
    "sample_noise",
    "select_patches",
    "unpatchify",
    "visible_encoder",
]
