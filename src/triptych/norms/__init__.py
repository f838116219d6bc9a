"""Normalizers of tokens: Dynamic Token Normalization, its rivals, and putting them into backbones.

Plain PyTorch: nothing here needs a training framework.
"""

from triptych.norms.baselines import BatchNorm, DyT, GroupNorm, InstanceNorm, RMSNorm, ScaleNorm
from triptych.norms.dynamic_token_norm import DynamicTokenNorm
from triptych.norms.position_weights import PositionWeights
from triptych.norms.replace import NORM_NAMES, NormFactory, Replacement, replace_norms

__all__ = [
    "NORM_NAMES",
    "BatchNorm",
    "DyT",
    "DynamicTokenNorm",
    "GroupNorm",
    "InstanceNorm",
    "NormFactory",
    "PositionWeights",
    "RMSNorm",
    "Replacement",
    "ScaleNorm",
    "replace_norms",
]
