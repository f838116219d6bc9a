"""The published ways to train and fine-tune: what they say, and that they run."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from triptych.assembly import build_model, optimizer_settings
from triptych.config import RunConfig
from triptych.fitting import task_module
from triptych.hydra_app import compose_run
from triptych.paths import CONF
from triptych.tasks.optimization import build_optimizer, schedule_factor

# Published: peak, first and least learning rate, images in a batch, epochs; parameters in millions.
RECIPES = {
    "train_dtn": (1e-3, 1e-6, 1e-5, 1024, 300, 22.04e6),
    "finetune_swin_base": (1.875e-3, 3.75e-7, 3.75e-7, 768, 100, 87.77e6),
    "finetune_swin_large": (1.5e-3, 3e-7, 5.25e-7, 768, 100, 196.7e6),
    "finetune_simmim_swin_base": (5e-3, 1e-6, 1e-6, 2048, 100, 87.75e6),
    "finetune_mae_vit_base": (2e-3, 0.0, 1e-6, 1024, 100, 86.57e6),
}
PVT = ["backbone=pvt_small", "norm=dtn", "norm.pool_to=14", "task=train_dtn"]
LITTLE = {
    "swin": [
        "backbone.embed_dim=8",
        "backbone.depths=[1,1,2,1]",
        "backbone.num_heads=[1,1,2,2]",
        "backbone.window_size=4",
    ],
    "vit": ["backbone.embed_dim=16", "backbone.depths=[3]", "backbone.num_heads=[2]"],
}


def header(name: str) -> str:
    lines = (CONF / "task" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def composed(name: str, *more: str) -> RunConfig:
    text = re.search(r"Command:\s+python -m triptych (.*?)(?:PVT:|Hardware:)", header(name))
    assert text
    return compose_run([*shlex.split(text[1].replace("\\ ", "")), *more])


def one_step(config: RunConfig) -> tuple[torch.nn.Module, float, float]:
    """One update on two random images: the model, and its loss before and after."""
    torch.manual_seed(0)
    side = config.data.image_size
    model = build_model(config, 1000, drop_path=config.task.drop_path)
    module = task_module(config, model, 1, 1000)
    module.settings = optimizer_settings(config.task, config.norm)
    module.train()
    optimizer, _ = build_optimizer(model, module.settings, 1, backbone=model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    batch = (torch.randn(2, 3, side, side), torch.tensor([3, 7]), torch.tensor([0, 1]))
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses[0], losses[1]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_rates_are_the_published_ones(name: str) -> None:
    for line in ("Command:", "Hardware:", "Expected:"):
        assert line in header(name)
    config = composed(name)
    settings = optimizer_settings(config.task)
    peak, first, least, batch, epochs, _ = RECIPES[name]
    assert settings.peak == pytest.approx(peak)
    assert (config.task.batch_size, config.task.epochs) == (batch, epochs)
    steps = 1000
    rates = [
        settings.peak * schedule_factor(step, steps_per_epoch=steps, settings=settings)
        for step in (0, round(steps * config.task.warmup_epochs), steps * epochs)
    ]
    assert rates[0] == pytest.approx(first, abs=2e-4 * peak)
    assert rates[1] == pytest.approx(peak)
    assert rates[2] == pytest.approx(least)


def test_simmim_steps_down() -> None:
    config = compose_run(
        ["backbone=swin_base_w6", "pretrain=simmim_swin_base_192_800ep", "data=synthetic",
         "data.image_size=192"]
    )  # fmt: skip
    settings = optimizer_settings(config.pretrain)
    factors = [
        schedule_factor(epoch * 10, steps_per_epoch=10, settings=settings)
        for epoch in (10, 699, 700, 799)
    ]
    assert factors == pytest.approx([1, 1, 0.1, 0.1])
    assert settings.peak == pytest.approx(4e-4)
    assert settings.start_learning_rate == pytest.approx(5e-7 * 2048 / 512)


def test_every_recipe_is_known_here() -> None:
    shipped = {path.stem for path in (CONF / "task").glob("*_*.yaml")}
    assert {name for name in shipped if name.startswith(("train_", "finetune_"))} == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_in_little(name: str) -> None:
    kind = "swin" if "swin" in name else "vit"
    size = "data.image_size=64"
    _, before, after = one_step(composed(name, *LITTLE[kind], size))
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(RECIPES), "pvt"])
def test_a_step_at_the_real_size(name: str) -> None:
    if name == "pvt":
        config = compose_run([*PVT, "data=imagenet", "data.root=/data/imagenet"])
        parameters = 24.49e6
    else:
        config, parameters = composed(name), RECIPES[name][5]
    model, before, after = one_step(config)
    assert after < before
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=3e-3)
