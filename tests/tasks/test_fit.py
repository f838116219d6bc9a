"""Training that can be interrupted anywhere: the result is that of an uninterrupted run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.data.augmentation import Augmentation
from triptych.data.images import ImageSource, ImageSpec, load_images
from triptych.data.loading import make_loader
from triptych.tasks.callbacks import NonFiniteError, Preempted
from triptych.tasks.checkpoints import LAST, AtomicCheckpointIO, CheckpointError, usable_checkpoint
from triptych.tasks.classification import ClassificationModule
from triptych.tasks.fit import FitSettings, fit
from triptych.tasks.metric_log import MetricLog, read_rows
from triptych.tasks.optimization import OptimizerSettings
from triptych.tasks.progress import Progress

EPOCHS = 2
STEPS = 5


def parts(workers: int = 0) -> tuple[ClassificationModule, Any, Any]:
    """A small network with dropout of paths, mixup, EMA and augmentation: all that is random."""
    spec = ImageSpec(
        ImageSource.synthetic,
        image_size=16,
        augmentation=Augmentation(crop_padding=2, flip=0.5),
        synthetic_images=100,
    )
    data = load_images(spec, seed=3)
    torch.manual_seed(0)
    model = build_backbone(
        BackboneSpec(Family.vit, 16, (2,), (2,), patch_size=4),
        image_size=(16, 16),
        channels=1,
        num_classes=10,
        drop_path=0.3,
    )
    train = make_loader(
        data.train, batch_size=16, seed=5, shuffle=True, drop_last=True, num_workers=workers
    )
    module = ClassificationModule(
        model,
        OptimizerSettings(1e-2, 0.0, 0.05, (0.9, 0.999), 0.5, EPOCHS, 16),
        steps_per_epoch=len(train),
        num_classes=10,
        mixup=0.8,
        cutmix=1.0,
        ema_decay=0.9,
    )
    return module, train, make_loader(data.test, batch_size=32)


def run(
    folder: Path,
    *,
    workers: int = 0,
    sink: Callable[[Progress], None] = lambda _: None,
    every: int = 2,
) -> ClassificationModule:
    module, train, test = parts(workers)
    log = MetricLog(folder / "metrics.jsonl", "task")
    settings = FitSettings(EPOCHS, accelerator="cpu", checkpoint_every=every)
    fit(module, train, test, folder, settings, log=log, seed=7, sink=sink)
    return module


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassificationModule, list[Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), read_rows(folder / "metrics.jsonl")


class KilledError(Exception):
    """Stands in for a kill: nothing is saved on the way out."""


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS + 1))
def test_kill_at_any_step_changes_nothing(
    tmp_path: Path, whole: Any, step: int, every: int
) -> None:
    seen = 0

    def kill(_: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, sink=kill, every=every)
    module = run(tmp_path, every=every)
    assert same_weights(module, whole[0])
    assert read_rows(tmp_path / "metrics.jsonl") == whole[1]


def test_resume_with_workers(tmp_path: Path, whole: Any) -> None:
    def kill(progress: Progress) -> None:
        if progress.share > 0.65:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, sink=kill)
    assert same_weights(run(tmp_path, workers=2), whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_at_once_and_goes_on(tmp_path: Path, whole: Any, number: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.share == pytest.approx(0.3):
            os.kill(os.getpid(), number)

    with pytest.raises(Preempted) as stopped:
        run(tmp_path, sink=stop, every=1000)
    assert stopped.value.exit_status == 128 + number
    state = AtomicCheckpointIO().load_checkpoint(tmp_path / LAST)
    assert state["global_step"] == 3
    assert same_weights(run(tmp_path), whole[0])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_at_the_last_batch_of_an_epoch(tmp_path: Path, whole: Any) -> None:
    def stop(progress: Progress) -> None:
        if progress.share == pytest.approx(0.5):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        run(tmp_path, sink=stop, every=1000)
    assert same_weights(run(tmp_path), whole[0])
    assert read_rows(tmp_path / "metrics.jsonl") == whole[1]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, whole: Any) -> None:
    def kill(progress: Progress) -> None:
        if progress.share > 0.65:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, sink=kill)
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / LAST).write_bytes(content)
    assert usable_checkpoint(tmp_path) == tmp_path / (LAST + ".previous")
    assert same_weights(run(tmp_path), whole[0])


def test_only_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError) as refusal:
        run(tmp_path)
    assert str(refusal.value) == (
        f"every checkpoint in {tmp_path} is damaged (last.ckpt); delete them to start this stage "
        "afresh."
    )


def test_nonfinite_gradient_stops_before_the_update(tmp_path: Path) -> None:
    module, train, test = parts()
    broken = module.training_step

    def poison(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = broken(batch, batch_idx)
        return loss * float("nan") if module.global_step == 3 else loss

    module.training_step = poison  # type: ignore[method-assign]
    log = MetricLog(tmp_path / "metrics.jsonl", "task")
    settings = FitSettings(EPOCHS, accelerator="cpu", checkpoint_every=2)
    with pytest.raises(NonFiniteError) as refusal:
        fit(module, train, test, tmp_path, settings, log=log, seed=7, sink=lambda _: None)
    assert str(refusal.value).startswith("the gradient of step 3 is nan; weights and batch are in ")
    assert all(torch.isfinite(p).all() for p in module.model.parameters())
    capture = torch.load(tmp_path / "nonfinite.pt", weights_only=False)
    assert capture["step"] == 3
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / LAST)["global_step"] == 2


def test_average_is_what_is_evaluated() -> None:
    module, _, _ = parts()
    assert module.average is not None
    first = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    module.average.update_parameters(module.model)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(1.0)
    module.average.update_parameters(module.model)
    # The second of two steps: the decay has only grown to 2/11.
    for name, parameter in module.evaluated.named_parameters():
        torch.testing.assert_close(parameter, first[name] + 9 / 11, atol=1e-6, rtol=0)


def test_epochs_without_an_evaluation_have_none_in_the_curves(tmp_path: Path) -> None:
    module, train, test = parts()
    log = MetricLog(tmp_path / "metrics.jsonl", "task")
    settings = FitSettings(EPOCHS + 2, accelerator="cpu", evaluate_every=2)
    fit(module, train, test, tmp_path, settings, log=log, seed=7, sink=lambda _: None)
    rows = list(read_rows(tmp_path / "metrics.jsonl"))
    assert [row["epoch"] for row in rows if row["name"] == "train/loss"] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows if row["name"] == "test/accuracy"] == [1, 3]
