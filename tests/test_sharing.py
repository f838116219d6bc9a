"""Several processes, or a batch in pieces: the result is that of one process with the whole batch.

Weights and curves agree to rounding: sums of floats are taken in another order.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triptych.assembly import load_data
from triptych.config import ConfigError, RunConfig
from triptych.fitting import CURVES, Surroundings, fit_stage
from triptych.hydra_app import compose_run
from triptych.stages import pretrain_stage, task_stage
from triptych.tasks.callbacks import Preempted
from triptych.tasks.metric_log import read_rows
from triptych.tasks.progress import Progress
from triptych.training import WEIGHTS, pretrain, train_task

SMALL = [
    "data.synthetic_images=83",
    "data.test_fraction=0.4",
    "task.epochs=2",
    "task.learning_rate=8e-3",
    "trainer.accelerator=cpu",
]
# All that is drawn for a sample or a batch.
DRAWS = ["task.drop_path=0.3", "task.mixup=0.8", "task.cutmix=1.0", "task.ema_decay=0.9"]
DRAWS += ["data.flip=0.5", "data.random_resized_crop=[0.4,1.0]"]
TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]


class KilledError(Exception):
    """Stands in for a kill: nothing is saved on the way out."""


def silent() -> Surroundings:
    return Surroundings(lambda _: None, lambda _: None)


def composed(toy: list[str], folder: Path, *more: str) -> RunConfig:
    return compose_run([*toy, *SMALL, f"output_dir={folder}", *more])


def trained(config: RunConfig) -> tuple[dict[str, torch.Tensor], dict[Any, float], dict[str, Any]]:
    """Weights, curves and notes of the task, after the pre-training if there is one."""
    data = load_data(config)
    pretrain(config, data, silent())
    notes = train_task(config, data, silent())
    folder = task_stage(config).folder
    rows = {(row["epoch"], row["name"]): row["value"] for row in read_rows(folder / CURVES)}
    return load_file(folder / WEIGHTS), rows, notes


def assert_alike(first: RunConfig, second: RunConfig) -> None:
    weights, curves, notes = trained(first)
    others, other_curves, other_notes = trained(second)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=2e-4, rtol=1e-3, msg=name)
    assert curves.keys() == other_curves.keys()
    assert other_curves == pytest.approx(curves, rel=2e-3, abs=1e-4)
    assert other_notes["metrics"] == pytest.approx(notes["metrics"], rel=2e-3)
    assert task_stage(first).key == task_stage(second).key


def test_two_processes(toy: list[str], tmp_path: Path) -> None:
    alone = composed(toy, tmp_path / "one", *DRAWS)
    shared = composed(toy, tmp_path / "two", *DRAWS, "trainer=ddp", "trainer.precision=fp32", *TWO)
    assert_alike(alone, shared)


@pytest.mark.parametrize(
    "more", [["trainer.accumulate=4"], ["trainer.accumulate=2", "trainer=fsdp", *TWO]]
)
def test_pieces_and_sharding(toy: list[str], tmp_path: Path, more: list[str]) -> None:
    alone = composed(toy, tmp_path / "one", *DRAWS)
    batch = ["trainer.precision=fp32"]
    shared = composed(toy, tmp_path / "two", *DRAWS, *more, *batch)
    assert_alike(alone, shared)


@pytest.mark.parametrize("name", ["greenmim", pytest.param("standard", marks=pytest.mark.slow)])
def test_pretraining(toy: list[str], tmp_path: Path, name: str) -> None:
    pre = [f"pretrain={name}", "norm=dtn"]
    more = ["trainer=ddp", "trainer.precision=fp32", "trainer.accumulate=2", *TWO]
    alone = composed(toy, tmp_path / "one", *pre)
    shared = composed(toy, tmp_path / "two", *pre, *more)
    for config in (alone, shared):
        pretrain(config, load_data(config), silent())
    weights = load_file(pretrain_stage(alone).folder / WEIGHTS)
    others = load_file(pretrain_stage(shared).folder / WEIGHTS)
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, atol=2e-4, rtol=1e-3, msg=key)
    assert pretrain_stage(alone).key == pretrain_stage(shared).key


def test_a_batch_that_does_not_come_apart(toy: list[str], tmp_path: Path) -> None:
    config = composed(toy, tmp_path, "trainer.accumulate=3")
    with pytest.raises(ConfigError) as refusal:
        fit_stage(config, load_data(config), "task", tmp_path, silent())
    assert str(refusal.value) == (
        "a batch of 8 does not come apart into equal parts for 1 devices with "
        "trainer.accumulate=3; give task.batch_size=6."
    )


def test_keys_know_of_sharing_only_where_it_matters() -> None:
    shared = ["trainer=ddp", "trainer.devices=4", "trainer.precision=fp32"]
    for more in (["norm=dtn"], ["pretrain=greenmim"], ["trainer.accumulate=2"]):
        assert task_stage(compose_run(more)).key == task_stage(compose_run([*more, *shared])).key
    for more in (["norm=bn"], ["backbone=levit_nano"]):
        alone, parted = compose_run(more), compose_run([*more, *shared])
        pieces = compose_run([*more, "trainer.accumulate=4"])
        assert task_stage(alone).key != task_stage(parted).key == task_stage(pieces).key
    masks = ["pretrain=greenmim", "pretrain.mask_per_sample=false"]
    keys = [pretrain_stage(compose_run([*masks, *more])).key for more in ([], shared)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["trainer.devices=2"],
            "trainer.devices=2 has no meaning for trainer.strategy=single; use trainer=ddp or "
            "fsdp, or leave it null.",
        ),
        (
            ["trainer=ddp", "norm=bn"],
            "trainer.devices has no value, but the result depends on it: the statistics of batch "
            "normalization, or a mask for a whole batch, are those of each device; give it, for "
            "example trainer.devices=8 (trainer.strategy=ddp).",
        ),
        (
            ["task.schedule=multistep"],
            "task.schedule=multistep has no milestones; give both, for example task.schedule="
            "multistep task.milestones=[8,11], or neither.",
        ),
        (
            ["pretrain=greenmim", "pretrain.milestones=[2]"],
            "pretrain.schedule=cosine has pretrain.milestones that it ignores; give both, for "
            "example pretrain.schedule=multistep pretrain.milestones=[8,11], or neither.",
        ),
        (
            ["task.start_learning_rate=1"],
            "task.start_learning_rate=1 is above the rate 0.002 that warm-up leads to; give that "
            "or less.",
        ),
    ],
)
def test_refusals(more: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_run(more)
    assert str(refusal.value) == sentence


def test_another_number_of_pieces_goes_on(toy: list[str], tmp_path: Path) -> None:
    """Stopped in the middle of an epoch of four pieces, ended in two: the result is the same."""
    whole = composed(toy, tmp_path / "one", *DRAWS)
    weights, curves, _ = trained(whole)
    first = composed(toy, tmp_path / "two", *DRAWS, "trainer.accumulate=4")
    data, folder = load_data(first), task_stage(first).folder

    def kill(progress: Progress) -> None:
        if progress.share > 0.7:
            raise KilledError

    saving = replace(first, trainer=replace(first.trainer, checkpoint_every=1))
    with pytest.raises(KilledError):
        fit_stage(saving, data, "task", folder, Surroundings(kill, lambda _: None))
    second = replace(first, trainer=replace(first.trainer, accumulate=2))
    others, other_curves, _ = trained(second)
    assert other_curves == pytest.approx(curves, rel=2e-3, abs=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=2e-4, rtol=1e-3, msg=name)


def test_waiting_for_data_is_noted(toy: list[str], tmp_path: Path) -> None:
    _, _, notes = trained(composed(toy, tmp_path))
    assert 0 < notes["waited"] < notes["seconds"]


@pytest.mark.slow
def test_a_signal_stops_all_processes_and_they_go_on(toy: list[str], tmp_path: Path) -> None:
    whole = composed(toy, tmp_path / "one", *DRAWS)
    weights, curves, _ = trained(whole)
    shared = composed(toy, tmp_path / "two", *DRAWS, "trainer=ddp", "trainer.precision=fp32", *TWO)
    data, folder = load_data(shared), task_stage(shared).folder

    def stop(progress: Progress) -> None:
        if progress.share == pytest.approx(0.25):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        fit_stage(shared, data, "task", folder, Surroundings(stop, lambda _: None))
    others, other_curves, _ = trained(shared)
    assert other_curves == pytest.approx(curves, rel=2e-3, abs=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_process_that_fails_is_told_of(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(toy, tmp_path, "trainer=ddp", "trainer.precision=fp32", *TWO)
    data, folder = load_data(config), task_stage(config).folder
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "safetensors").mkdir()  # a package that breaks the other process alone
    (tmp_path / "safetensors" / "__init__.py").write_text("raise ImportError('broken')")
    with pytest.raises(RuntimeError) as failure:
        fit_stage(config, data, "task", folder, silent())
    assert str(failure.value) == (
        f"the process of rank 1 ended with status 1; its output is in {folder / 'rank1.log'}"
    )
    assert "broken" in (folder / "rank1.log").read_text()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(toy: list[str], tmp_path: Path) -> None:
    alone = composed(toy, tmp_path / "one")
    assert_alike(alone, composed(toy, tmp_path / "two", "trainer.compile=true"))
