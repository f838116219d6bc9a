"""The plan of a run is what the run then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.assembly import load_data
from triptych.config import ConfigError
from triptych.hydra_app import compose_run
from triptych.planning import IMAGENET, describe, known_sizes, plan_run
from triptych.records import write_json


@pytest.mark.parametrize(
    "more",
    [
        ["data=mnist_5k"],
        ["data=digits", "data.train_fraction=0.3"],
        ["data=synthetic", "data.synthetic_images=50", "data.test_fraction=0.33"],
        ["data=scenes", "data.scenes=60"],
        [
            *("data=listops_short", "backbone=bigbird_nano", "task=listops"),
            *("data.train_sequences=20", "data.test_sequences=10"),
        ],
    ],
)
def test_sizes_are_those_of_the_data(more: list[str]) -> None:
    config = compose_run(more)
    data, sizes = load_data(config), known_sizes(config)
    assert (sizes.train, sizes.test) == (len(data.train), len(data.test))
    assert sizes.classes == data.num_classes


def test_a_recipe_without_its_data() -> None:
    config = compose_run(
        ["backbone=vit_tiny", "norm=dtn", "task=train_dtn", "data=imagenet", "data.root=/nowhere",
         "trainer=ddp", "trainer.devices=4", "trainer.accumulate=2"]
    )  # fmt: skip
    plan = plan_run(config)
    (stage,) = plan.stages
    assert (plan.sizes.train, plan.sizes.test, plan.sizes.classes) == IMAGENET
    assert (stage.batch, stage.devices, stage.pieces) == (1024, 4, 2)
    assert (stage.steps_per_epoch, stage.steps) == (1251, 375_300)
    assert stage.peak_rate == pytest.approx(1e-3)
    # Tables of DTN: 5.7 M parameters, 1.26 G multiply-adds.
    assert stage.parameters == pytest.approx(5.72e6, rel=0.01)
    assert stage.macs == pytest.approx(1.26e9, rel=0.05)
    # Weights, their average, gradients and two moments; a batch of 128 on each of 4 devices.
    assert stage.fixed_bytes == 5 * 4 * stage.parameters
    half = plan_run(compose_run([
        "backbone=vit_tiny", "norm=dtn", "task=train_dtn", "data=imagenet", "data.root=/nowhere",
        "trainer=ddp", "trainer.devices=8", "trainer.accumulate=2"
    ])).stages[0]  # fmt: skip
    assert half.activation_bytes == pytest.approx(stage.activation_bytes / 2)
    assert "1,024 = 128 × 4 devices × 2 pieces" in describe(plan)


def test_what_is_there_is_told(toy: list[str]) -> None:
    config = compose_run([*toy, "pretrain=greenmim"])
    plan = plan_run(config)
    assert [stage.state for stage in plan.stages] == ["to do", "to do"]
    write_json(plan.stages[0].folder / "done.json", {"seconds": 1.0})
    plan.stages[1].folder.mkdir(parents=True)
    (plan.stages[1].folder / "last.ckpt").write_bytes(b"")
    states = [stage.state for stage in plan_run(config).stages]
    assert states == ["done", "interrupted, goes on"]
    assert str(plan.folder) in describe(plan)


def test_devices_that_nobody_counts(toy: list[str], tmp_path: Path) -> None:
    config = compose_run([*toy, "trainer=ddp", "trainer.accelerator=cpu"])
    with pytest.raises(ConfigError) as refusal:
        plan_run(config)
    assert str(refusal.value) == (
        "trainer.devices has no value, and there is no GPU to count for trainer.strategy=ddp; "
        "give the number of processes, for example trainer.devices=8."
    )


def test_tasks_that_ask_what_was_trained(toy: list[str]) -> None:
    plan = plan_run(compose_run([*toy, "task=knn", "pretrain=greenmim"]))
    assert [stage.name for stage in plan.stages] == ["pretrain"]
    assert [state for state, _ in plan.others] == ["to do"]
    plan = plan_run(compose_run([*toy, "task=robustness"]))
    assert [stage.name for stage in plan.stages] == ["task"]
    assert len(plan.others) == 1
    assert "without training  to do: " in describe(plan)
