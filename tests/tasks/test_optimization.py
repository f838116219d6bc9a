"""Parameter groups and schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.norms import replace_norms
from triptych.tasks.optimization import (
    OptimizerSettings,
    build_optimizer,
    layer_index,
    parameter_groups,
    schedule_factor,
)

SWIN = BackboneSpec(Family.swin, 16, (2, 2), (2, 4), patch_size=4, window_size=4)
VIT = BackboneSpec(Family.vit, 16, (3,), (2,), patch_size=4)


def settings(**changes: object) -> OptimizerSettings:
    values: dict[str, object] = {
        "learning_rate": 1e-3,
        "min_learning_rate": 0.0,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "warmup_epochs": 1.0,
        "epochs": 10,
        "batch_size": 256,
    }
    return OptimizerSettings(**(values | changes))  # type: ignore[arg-type]


def backbone(spec: BackboneSpec) -> nn.Module:
    return build_backbone(spec, image_size=(32, 32), channels=1, num_classes=10)


@pytest.mark.parametrize("spec", [SWIN, VIT], ids=["swin", "vit"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_parameter_is_in_one_group(spec: BackboneSpec, layer_decay: float) -> None:
    model = backbone(spec)
    groups = parameter_groups(model, settings(layer_decay=layer_decay), model)
    members = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


def test_position_weights_tables_and_vectors_are_not_decayed() -> None:
    model = backbone(SWIN)
    replace_norms(model, "dtn")
    decayed = {
        id(p)
        for group in parameter_groups(model, settings())
        if group["weight_decay"]
        for p in group["params"]  # type: ignore[attr-defined]
    }
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or "pos_proj" in name or "bias_table" in name
        assert (id(parameter) not in decayed) == exempt, name


@pytest.mark.parametrize("spec", [SWIN, VIT], ids=["swin", "vit"])
def test_layers_learn_slower_the_deeper_they_lie(spec: BackboneSpec) -> None:
    model = backbone(spec)
    layers = layer_index(model)
    last = max(layers.values())
    groups = parameter_groups(model, settings(layer_decay=0.5), model)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (last - layers[name]))
    assert layers["patch_embed.proj.weight"] == 0
    assert max(layers, key=lambda name: layers[name]).startswith("head")


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_position_weights_and_mixing_logits_have_a_rate_of_their_own(layer_decay: float) -> None:
    model = backbone(SWIN)
    replace_norms(model, "dtn")

    def rates(factor: float) -> dict[int, float]:
        chosen = settings(position_lr_factor=factor, layer_decay=layer_decay)
        groups = parameter_groups(model, chosen, model)
        return {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]

    plain, slow = rates(1.0), rates(0.1)
    slowed = {name for name, p in model.named_parameters() if slow[id(p)] != plain[id(p)]}
    sites = [f"layers.{s}.blocks.{b}.norm{n}" for s in (0, 1) for b in (0, 1) for n in (1, 2)]
    names = ("pos_proj.weight", "mean_norm_weight", "var_norm_weight")
    assert slowed == {f"{site}.{name}" for site in sites for name in names}
    for name, parameter in model.named_parameters():
        factor = 0.1 if name in slowed else 1.0
        assert slow[id(parameter)] == pytest.approx(factor * plain[id(parameter)])


def test_a_factor_of_zero_holds_the_position_weights() -> None:
    model = backbone(SWIN)
    replace_norms(model, "dtn")
    held = model.layers[0].blocks[0].norm1.pos_proj.weight  # type: ignore[union-attr, index]
    before = held.detach().clone()
    optimizer, _ = build_optimizer(model, settings(position_lr_factor=0.0), 10, model)
    model(torch.randn(2, 1, 32, 32)).square().sum().backward()
    optimizer.step()
    assert held.grad.abs().max() > 0
    assert torch.equal(held, before)


def test_learning_rate_scales_with_the_batch() -> None:
    assert settings(batch_size=1024).peak == pytest.approx(4e-3)


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.floats(0, 0.9),
    st.floats(0, 1e-3),
)
def test_schedule_stays_between_floor_and_peak(
    per_epoch: int, epochs: int, warm: float, floor: float
) -> None:
    chosen = settings(epochs=epochs, warmup_epochs=warm * epochs, min_learning_rate=floor)
    warmup = round(per_epoch * chosen.warmup_epochs)
    values = [
        schedule_factor(step, steps_per_epoch=per_epoch, settings=chosen)
        for step in range(per_epoch * epochs + 1)
    ]
    assert all(0 < value <= 1 + 1e-12 for value in values[:warmup])
    after = values[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert min(after) >= floor / chosen.peak - 1e-12


def test_schedule_by_hand() -> None:
    chosen = settings(epochs=3, warmup_epochs=1.0)
    factors = [schedule_factor(s, steps_per_epoch=2, settings=chosen) for s in range(7)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert factors == pytest.approx([0.5, 1.0, *cosine])


def test_optimizer_starts_at_the_warm_up() -> None:
    model = backbone(VIT)
    optimizer, _ = build_optimizer(model, settings(), steps_per_epoch=10, backbone=model)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}
