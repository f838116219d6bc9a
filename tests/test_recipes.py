"""The published recipes: what they say, and that they run, small and at their real size."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from triptych.assembly import build_masked_model, build_model, optimizer_settings
from triptych.config import RunConfig
from triptych.hydra_app import compose_run
from triptych.mim import restore_order
from triptych.paths import CONF
from triptych.tasks.optimization import build_optimizer
from triptych.tasks.pretraining import PretrainingModule
from triptych.tasks.step_masks import MaskedBatch, MaskPlanner

# Published: peak learning rate, images in a batch, epochs, parameters of the whole model.
RECIPES = {
    "greenmim_swin_base_w7": (8e-4, 2048, 800, 92.02e6),
    "greenmim_swin_base_w14": (1.2e-3, 2048, 800, None),
    "greenmim_swin_large_w14": (8e-4, 2048, 800, 200.80e6),
    "greenmim_twins_large": (2.4e-3, 4096, 100, 103.53e6),
    "simmim_swin_base_192": (8e-4, 2048, 100, None),
    "simmim_swin_base_192_800ep": (4e-4, 2048, 800, None),
    "simmim_swin_large_192_800ep": (4e-4, 2048, 800, None),
    "simmim_swin_base_224": (8e-4, 2048, 100, None),
    "mae_vit_base": (2.4e-3, 4096, 1600, None),
    "uniform_swin_tiny": (2.4e-3, 4096, 200, None),
}
# The same network in little: four stages, so that the mask unit is the published 32 pixels.
LITTLE = {
    "swin": [
        "backbone.embed_dim=8",
        "backbone.depths=[1,1,2,1]",
        "backbone.num_heads=[1,1,2,2]",
        "backbone.window_size=4",
    ],
    "twins": [
        "backbone.embed_dims=[8,8,16,16]",
        "backbone.depths=[1,2,2,1]",
        "backbone.num_heads=[1,1,2,2]",
        "backbone.window_size=4",
    ],
    "vit": ["backbone.embed_dim=16", "backbone.depths=[2]", "backbone.num_heads=[2]"],
}


def header(name: str) -> str:
    lines = (CONF / "pretrain" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def command(name: str) -> list[str]:
    """The overrides of the command in the recipe's header."""
    text = re.search(r"python -m triptych (.*?)Hardware:", header(name))
    assert text
    return shlex.split(text[1].replace("\\ ", ""))


def as_published(name: str, *more: str) -> RunConfig:
    return compose_run([*command(name), "visualize=none", *more])


def one_step(config: RunConfig) -> tuple[torch.nn.Module, float, float]:
    """One update on two random images: the model, and its loss before and after."""
    pre, side = config.pretrain, config.data.image_size
    model = build_masked_model(config, build_model(config, 1000, drop_path=pre.drop_path))
    module = PretrainingModule(model, optimizer_settings(pre), steps_per_epoch=1)
    planner = MaskPlanner(model, ratio=pre.mask_ratio, per_sample=pre.mask_per_sample, seed=0)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    batch = MaskedBatch(images, torch.zeros(2), torch.arange(2), planner(0, [0, 1]))
    optimizer, _ = build_optimizer(model, optimizer_settings(pre), steps_per_epoch=100)
    before = module.training_step(batch, 0)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return model, float(before), float(module.training_step(batch, 0))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_header_holds_a_command_that_composes(name: str) -> None:
    for line in ("Command:", "Hardware:", "Expected:"):
        assert line in header(name)
    assert f"pretrain={name}" in command(name)
    config = as_published(name)
    rate, batch, epochs, _ = RECIPES[name]
    settings = optimizer_settings(config.pretrain)
    assert settings.peak == pytest.approx(rate)
    assert (config.pretrain.batch_size, config.pretrain.epochs) == (batch, epochs)
    assert config.pretrain.weight_decay == 0.05


def test_every_recipe_is_known_here() -> None:
    shipped = {path.stem for path in (CONF / "pretrain").glob("*_*.yaml")}
    assert shipped - {"greenmim_published_order"} == set(RECIPES)


@pytest.mark.parametrize(
    ("option", "peak", "least"),
    [("finetune_swin_base", 1.875e-3, 3.75e-7), ("finetune_swin_large", 1.5e-3, 5.25e-7)],
)
def test_rates_of_fine_tuning(option: str, peak: float, least: float) -> None:
    task = compose_run([f"task={option}"]).task
    settings = optimizer_settings(task)
    assert settings.peak == pytest.approx(peak)
    assert settings.min_learning_rate == pytest.approx(least)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_in_little(name: str) -> None:
    family = next(word for word in LITTLE if word in name)
    config = as_published(
        name, *LITTLE[family], "data.image_size=128", "pretrain.decoder_dim=32",
        "pretrain.decoder_heads=4",
    )  # fmt: skip
    _, before, after = one_step(config)
    assert 0 < after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_at_the_real_size(name: str) -> None:
    config = as_published(name)
    model, before, after = one_step(config)
    assert before > 0
    assert after < before
    published = RECIPES[name][3]
    if published is not None:
        backbone = model.backbone
        classifier = sum(p.numel() for p in backbone.get_classifier().parameters())  # type: ignore[operator]
        count = sum(p.numel() for p in model.parameters()) - classifier
        # The publication counts the fixed positions of the decoder with it.
        assert count + model.decoder.positions.numel() == pytest.approx(published, rel=2e-4)


def test_restoring_needs_the_order_of_the_noise() -> None:
    """A recipe in the published order runs through the same module."""
    config = as_published(
        "greenmim_swin_base_w7", *LITTLE["swin"], "data.image_size=128",
        "pretrain.decoder_dim=32", "pretrain.decoder_heads=4", "pretrain.decoder_order=published",
    )  # fmt: skip
    model, _, _ = one_step(config)
    assert model.needs_order
    assert restore_order(torch.tensor([[0.3, 0.1, 0.2]])).tolist() == [[2, 0, 1]]
