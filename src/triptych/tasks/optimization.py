"""Optimizer groups and learning-rate schedule as the papers use them.

AdamW; no weight decay on vectors, tokens, position tables and DTN's position weights and mixing
logits (decay would pull the neighbourhood to the whole grid and the mixture to one half), which
may also learn at a rate of their own; layer-wise learning-rate decay; linear warm-up, then half a
cosine, the inverse square root of the step, or steps down at milestones, updated every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

REFERENCE_BATCH = 256
POSITION = ("pos_proj", "mean_norm_weight", "var_norm_weight", "prefix_score")
UNDECAYED = ("pos_embed", "cls_token", "mask_token", "relative_position_bias_table", *POSITION)


@dataclass(frozen=True)
class OptimizerSettings:
    """``learning_rate`` is for 256 images and is scaled by ``batch_size`` / 256.

    ``position_lr_factor`` multiplies it for DTN's position weights and mixing logits. Warm-up
    begins at ``start_learning_rate``. ``schedule``: ``inverse_sqrt`` falls as sqrt(warm-up / step)
    after warm-up, ``multistep`` to a tenth at each of ``milestones`` (epochs), else a cosine.
    """

    learning_rate: float
    min_learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_epochs: float
    epochs: int
    batch_size: int
    layer_decay: float = 1.0
    position_lr_factor: float = 1.0
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    start_learning_rate: float = 0.0

    @property
    def peak(self) -> float:
        """Learning rate after warm-up."""
        return self.learning_rate * self.batch_size / REFERENCE_BATCH


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim > 1 and not any(part in name for part in UNDECAYED)


def is_positional(name: str) -> bool:
    """Whether a parameter says where DTN looks, or how it mixes what it sees."""
    return any(part in name for part in POSITION)


def layer_index(backbone: nn.Module) -> dict[str, int]:
    """Parameter name → depth, 0 for the patch embedding, as timm groups the model's layers."""
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    names = group_parameters(backbone, matcher, reverse=True)
    order = {layer: index for index, layer in enumerate(sorted(set(names.values())))}
    return {name: order[layer] for name, layer in names.items()}


def parameter_groups(
    model: nn.Module, settings: OptimizerSettings, backbone: nn.Module | None = None
) -> list[dict[str, object]]:
    """Groups of equal weight decay and learning-rate scale over all trainable parameters.

    With ``settings.layer_decay`` < 1, layer k of n of ``backbone`` learns at
    ``layer_decay ** (n - k)`` times the rate; what is not of the backbone is one layer more, which
    learns at the full rate.
    ``settings.position_lr_factor`` comes on top for DTN's position weights and mixing logits.
    """
    depth: dict[int, int] = {}
    if backbone is not None and settings.layer_decay < 1.0:
        layers = layer_index(backbone)
        depth = {id(p): layers[name] for name, p in backbone.named_parameters()}
    outside = any(id(parameter) not in depth for _, parameter in _trainable(model))
    last = max(depth.values(), default=0) + outside
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in _trainable(model):
        scale = settings.layer_decay ** (last - depth.get(id(parameter), last))
        scale *= settings.position_lr_factor if is_positional(name) else 1.0
        decay = settings.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault(
            (decay, scale),
            {"params": [], "weight_decay": decay, "lr": settings.peak * scale, "scale": scale},
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def schedule_factor(step: int, *, steps_per_epoch: int, settings: OptimizerSettings) -> float:
    """Learning rate at ``step`` as a share of the peak."""
    total = max(1, steps_per_epoch * settings.epochs)
    warmup = round(steps_per_epoch * settings.warmup_epochs)
    if step < warmup:
        start = settings.start_learning_rate / settings.peak
        return start + (1 - start) * (step + 1) / warmup
    if settings.schedule == "multistep":
        return 0.1 ** sum(step >= steps_per_epoch * epoch for epoch in settings.milestones)
    floor = min(1.0, settings.min_learning_rate / settings.peak)
    if settings.schedule == "inverse_sqrt":
        return max(floor, math.sqrt(max(1, warmup) / max(1, step + 1)))
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    steps_per_epoch: int,
    backbone: nn.Module | None = None,
) -> tuple[Optimizer, LambdaLR]:
    """AdamW over :func:`parameter_groups`, with the schedule to be stepped after every update."""
    optimizer = AdamW(
        parameter_groups(model, settings, backbone),
        betas=(settings.betas[0], settings.betas[1]),
        fused=True,
    )
    # What it says of fused AdamW keeps Lightning from clipping in 16 bits; scaled gradients are
    # unscaled before the step then, as for any other optimizer.
    optimizer._step_supports_amp_scaling = False
    scheduler = LambdaLR(
        optimizer,
        lambda step: schedule_factor(step, steps_per_epoch=steps_per_epoch, settings=settings),
    )
    return optimizer, scheduler
