"""Every small backbone with every norm: one step of training, and every refusal with its reason."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from triptych.assembly import build_masked_model, build_model, optimizer_settings
from triptych.choices import DtnInit, Initialization, NormName
from triptych.config import ConfigError, RunConfig
from triptych.hydra_app import compose_run
from triptych.legality import check
from triptych.mim import mask_from_noise
from triptych.norms import NORM_NAMES, PositionWeights
from triptych.norms.position_weights import locality_weights
from triptych.norms.sites import native_norm
from triptych.paths import CONF
from triptych.tasks.optimization import build_optimizer, is_positional, layer_index

SEQUENCES = ("transformer_nano", "bigbird_nano", "reformer_nano")
NANO = sorted(
    path.stem for path in (CONF / "backbone").glob("*_nano.yaml") if path.stem not in SEQUENCES
)
PRETRAINED = ("swin_nano", "vit_nano")
PYRAMIDS = ("pvt_nano", "pvt_v2_nano", "twins_pcpvt_nano", "twins_svt_nano")
HIERARCHICAL = ("swin_nano", *PYRAMIDS)


@functools.cache
def composed(backbone: str, pretrain: str) -> RunConfig:
    options = ["visualize=none", "pretrain=" + pretrain] if pretrain else ["visualize=none"]
    return compose_run([f"backbone={backbone}", *options])


def compose(backbone: str, norm: str, pretrain: str = "", **options: object) -> RunConfig:
    """As on the command line, but each backbone is read once."""
    base = composed(backbone, pretrain)
    chosen = replace(base.norm, name=NormName[norm])
    config = replace(base, norm=chosen, backbone=replace(base.backbone, **options))
    check(config)
    return config


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> set[str]:
    """Take one step; return the names of the parameters that it moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_every_family_has_a_small_backbone_and_every_norm_an_option() -> None:
    families = {str(compose(name, "ln").backbone.family) for name in NANO}
    assert families == {
        *("vit", "swin", "released_vit", "t2t_vit", "pvt", "pvt_v2"),
        *("twins_svt", "twins_pcpvt", "levit"),
    }
    options = {path.stem for path in (CONF / "norm").glob("*.yaml")}
    assert {option.removesuffix("_paper") for option in options} == set(NORM_NAMES)
    assert {str(name) for name in NormName} == set(NORM_NAMES)


@pytest.mark.parametrize(("backbone", "norm"), list(itertools.product(NANO, NORM_NAMES)))
def test_a_step_of_training(backbone: str, norm: str) -> None:
    config = compose(backbone, norm)
    model = build_model(config, 10)
    settings = optimizer_settings(config.task, config.norm)
    optimizer, _ = build_optimizer(model, settings, steps_per_epoch=4, backbone=model)
    moved = set()
    for _ in range(2):  # a classifier or projection that starts at 0 lets nothing through at first
        loss = F.cross_entropy(model(images()), torch.tensor([1, 2]))
        moved |= step(model, loss, optimizer)
    if norm == "dtn":
        positions = {name for name, _ in model.named_parameters() if is_positional(name)}
        assert positions
        assert positions <= moved
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not moved & fixed


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize(
    ("backbone", "pretrain"),
    [
        *((name, kind) for name in HIERARCHICAL for kind in ("greenmim", "standard")),
        ("vit_nano", "standard"),
    ],
)
def test_a_step_of_pre_training(backbone: str, pretrain: str, norm: str) -> None:
    config = compose(backbone, norm, pretrain)
    masked = build_masked_model(config, build_model(config, 10))
    settings = optimizer_settings(config.pretrain, config.norm)
    optimizer, _ = build_optimizer(masked, settings, steps_per_epoch=4)
    rows, columns = masked.unit_grid
    noise = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(2))
    mask = mask_from_noise(noise, config.pretrain.mask_ratio)
    loss = masked(images(), mask, masked.plan(mask)).loss
    assert step(masked, loss, optimizer)


@pytest.mark.parametrize(
    ("backbone", "pretrain"),
    [
        (name, kind)
        for name in NANO
        if name not in (*PRETRAINED, *PYRAMIDS)
        for kind in ("standard", "greenmim")
    ],
)
def test_pre_training_of_another_family_is_refused(backbone: str, pretrain: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose(backbone, "dtn", pretrain)
    known = "swin, twins_svt, twins_pcpvt, pvt and pvt_v2"
    families = f"vit, {known}" if pretrain == "standard" else known
    assert str(refusal.value) == (
        f"pretrain={pretrain} does not know the layout of backbone={backbone}; legal are the "
        f"backbones of family {families}, or pretrain=none."
    )


@pytest.mark.parametrize("backbone", PYRAMIDS)
def test_mask_units_must_hold_whole_cells(backbone: str) -> None:
    stages = len(compose(backbone, "ln").backbone.depths)
    ratios = (2**stages,) + (1,) * (stages - 1)
    cut = {"sr_ratios": ratios}
    build_model(compose(backbone, "ln", "standard", **cut), 10)
    with pytest.raises(ConfigError) as refusal:
        compose(backbone, "ln", "greenmim", **cut)
    side = 2 ** (stages - 1)
    legal = [2**n for n in range(stages)]
    assert str(refusal.value) == (
        f"backbone.sr_ratios={list(ratios)} does not fit pretrain=greenmim, whose mask units have "
        f"{side}x{side} tokens in stage 1: {2 * side} does not divide {side}; legal there are "
        f"{legal}."
    )


@pytest.mark.parametrize("backbone", NANO)
def test_layers_are_ordered_for_layer_wise_rates(backbone: str) -> None:
    model = build_model(compose(backbone, "dtn"), 10)
    layers = layer_index(model)
    assert layers.keys() == {name for name, _ in model.named_parameters()}
    first = next(iter(layers))
    last = max(layers.values())
    assert {layers[name] for name in layers if name.startswith("head")} == {last}
    assert layers[first] <= 1
    sites = [name for name in layers if name.endswith("pos_proj.weight")]
    assert [layers[name] for name in sites] == sorted(layers[name] for name in sites)


@pytest.mark.parametrize("backbone", NANO)
def test_what_the_norms_share_starts_equal(backbone: str) -> None:
    plain = build_model(compose(backbone, "ln"), 10)
    weights = plain.state_dict()
    for norm in NORM_NAMES:
        other = build_model(compose(backbone, norm), 10)
        state = other.state_dict()
        shared = [name for name in weights.keys() & state.keys() if "bn." not in name]
        for name in shared:
            if norm != "scale" or not name.endswith(("norm1.weight", "norm2.weight")):
                assert torch.equal(weights[name], state[name]), name
        assert native_norm(other) == ("bn" if backbone == "levit_nano" else "ln")


@pytest.mark.parametrize("backbone", NANO)
def test_locality_is_what_a_run_starts_from(backbone: str) -> None:
    """The backbone's own initialization, narrow or published, comes before DTN's."""
    for scheme in ("xavier", "normal"):
        config = compose(backbone, "dtn", initialization=Initialization[scheme])
        model = build_model(config, 10)
        positions = [m for m in model.modules() if isinstance(m, PositionWeights)]
        assert positions
        for position in positions:
            assert torch.equal(position.weight, locality_weights(len(position.weight)))
        other = replace(config, norm=replace(config.norm, init=DtnInit.released))
        for module in build_model(other, 10).modules():
            if isinstance(module, PositionWeights):
                assert 0 < module.weight.abs().max() < 0.2


@pytest.mark.parametrize("backbone", [name for name in NANO if name not in PRETRAINED])
def test_xavier_scales_with_the_width(backbone: str) -> None:
    spread = {}
    for scheme in ("xavier", "normal"):
        config = compose(backbone, "ln", initialization=Initialization[scheme])
        layer = next(
            m
            for name, m in build_model(config, 10).named_modules()
            if name.endswith(("mlp.fc1", "mlp.ln1.linear"))
        )
        spread[scheme] = layer.weight.std().item()
        fan = sum(layer.weight.shape)
    assert spread["xavier"] == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    if backbone != "levit_nano":
        assert spread["normal"] == pytest.approx(0.02, rel=0.1)
