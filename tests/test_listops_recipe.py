"""The published configuration of Long ListOps: one update at its real size."""

from __future__ import annotations

import pytest
import torch

from triptych.assembly import build_model, optimizer_settings
from triptych.data.listops import CLS, FIRST_OPERATOR, PAD, VOCABULARY
from triptych.fitting import task_module
from triptych.hydra_app import compose_run
from triptych.tasks.optimization import build_optimizer


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("family", ["transformer", "bigbird", "reformer"])
def test_a_step_at_the_real_size(family: str, norm: str) -> None:
    config = compose_run(
        [f"backbone={family}_listops", "data=listops", "task=listops_published", f"norm={norm}"]
    )
    assert config.data.max_length == 2000
    torch.manual_seed(0)
    model = build_model(config, 10)
    module = task_module(config, model, 1, 10)
    module.train()
    optimizer, _ = build_optimizer(model, optimizer_settings(config.task, config.norm), 1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    tokens = torch.randint(FIRST_OPERATOR, len(VOCABULARY), (2, config.data.max_length))
    tokens[:, 0] = CLS
    tokens[1, 700:] = PAD
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        loss = module.training_step((tokens, torch.tensor([3, 7]), torch.arange(2)), 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
