"""Lightning callbacks: what makes a run resumable, visible and safe."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from triptych.seeding import derive_seed
from triptych.signals import at_signals
from triptych.tasks.checkpoints import LAST
from triptych.tasks.metric_log import MetricLog
from triptych.tasks.progress import Progress, ProgressSink
from triptych.tasks.sharded import whole_tensor


class NonFiniteError(RuntimeError):
    """A gradient that is not finite; the message is one sentence for the user."""


class Preempted(Exception):  # noqa: N818 - an outcome, not an error
    """The run was asked to stop, and has saved what it computed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class StepSeed(Callback):
    """Makes the randomness of every step a function of (seed, stage, step).

    A resumed run needs no generator state then: it draws what an uninterrupted one draws.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.manual_seed(derive_seed(self.seed, self.stage, trainer.global_step))


class Position(Callback):
    """Keeps in every checkpoint which batch comes next; a batch is that of one update.

    Lightning asks the loader for its iterator before any hook of a resumed run, so
    :func:`triptych.tasks.fit.fit` reads the position from the checkpoint and sets it beforehand.
    """

    KEY, PIECES = "next_batch", "pieces"

    def __init__(self) -> None:
        self.following = (0, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, _m: Any, _o: Any, _b: Any, batch_idx: int
    ) -> None:
        self.following = (trainer.current_epoch, (batch_idx + 1) // trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.following = (trainer.current_epoch + 1, 0)

    def on_save_checkpoint(self, trainer: Any, _m: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.KEY] = list(self.following)
        checkpoint[self.PIECES] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: Any, _m: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning counts pieces of batches, and there may be other ones now."""
        former = checkpoint.get(self.PIECES, 1)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # By how much the last count lags behind tells Lightning where it was interrupted.
            lag = counts["processed"] - counts["completed"]
            for name in ("ready", "started", "processed"):
                counts[name] = counts[name] * trainer.accumulate_grad_batches // former
            counts["completed"] = counts["processed"] - lag


class FiniteGuard(Callback):
    """Stops before an update with a gradient that is not finite, and keeps what led to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batch: Any = None

    def on_train_batch_start(
        self, _t: pl.Trainer, _m: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        self.batch = batch

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # the scaler skips such steps by itself
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        # The same on every process, as their gradients are reduced by now.
        norm = float(whole_tensor(get_total_norm(gradients)))
        if math.isfinite(norm):
            return
        path = self.folder / "nonfinite.pt"
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            capture = {"weights": weights, "batch": self.batch, "step": trainer.global_step}
            torch.save(capture, path)
        raise NonFiniteError(
            f"the gradient of step {trainer.global_step} is {norm}; weights and batch are in "
            f"{path}, the last good checkpoint is kept: lower the learning rate, clip the "
            "gradient, or use trainer.precision=fp32."
        )


class Checkpointing(Callback):
    """Saves ``last.ckpt`` every ``every`` steps, at the end of an epoch, and when told to stop."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, folder: Path, every: int) -> None:
        self.path = folder / LAST
        self.every = every
        self.signal: int | None = None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals to stop as a note to save first."""
        with at_signals(self.SIGNALS, self._note):
            yield

    def on_train_start(self, *_: Any) -> None:
        # Lightning puts a handler of its own before ours, which waits for the other processes at
        # once, wherever those are: for ever. What it replaces it puts back in the end.
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, _m: Any, _o: Any, _b: Any, batch_idx: int
    ) -> None:
        # After its last batch an epoch is not over: a run resumed there would not end it.
        if batch_idx + 1 == trainer.num_training_batches:
            return
        # Between the pieces of a batch there are gradients, which no checkpoint holds.
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._agree(trainer)
        if self.signal is not None or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._agree(trainer)
        self._save(trainer)

    def _agree(self, trainer: pl.Trainer) -> None:
        """A signal to one of the processes is one to all: they save together or not at all."""
        if trainer.world_size > 1:
            number = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(number, reduce_op="max")) or None

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        if self.signal is not None:
            raise Preempted(self.signal)


class CurveWriter(Callback):
    """Writes the mean training loss, and what the module logged, to the metric log once an epoch.

    The running mean is part of the checkpoint, unlike Lightning's own.
    """

    def __init__(self, log: MetricLog) -> None:
        self.curves = log
        self.total: Tensor | float = 0.0
        self.count = 0.0
        self.evaluated = False

    def state_dict(self) -> dict[str, Any]:
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.count = state_dict["total"], state_dict["count"]

    def on_train_batch_end(self, trainer: pl.Trainer, _m: Any, outputs: Any, *_: Any) -> None:
        # Lightning divides the loss of a piece of a batch by the number of pieces.
        self.total = self.total + outputs["loss"].detach().double()
        self.count += 1 / trainer.accumulate_grad_batches

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.evaluated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning keeps the last evaluation's metrics through the epochs without one.
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if isinstance(value, Tensor) and (self.evaluated or not name.startswith("test/"))
        }
        self.evaluated = False
        total = self.total
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(torch.as_tensor(total), reduce_op="mean")
        values["train/loss"] = float(total) / self.count
        self.total, self.count = 0.0, 0.0
        values["train/learning_rate"] = max(
            group["lr"] for group in trainer.optimizers[0].param_groups
        )
        self.curves.append(trainer.current_epoch, trainer.global_step, values)


class ProgressReporter(Callback):
    """Tells the sink how far the stage is and how long it will take."""

    def __init__(self, sink: ProgressSink, stage: str) -> None:
        self.sink, self.stage = sink, stage
        self.started = 0.0
        self.first = 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.started, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        total = int(trainer.estimated_stepping_batches)
        done = trainer.global_step
        rate = (time.monotonic() - self.started) / max(1, done - self.first)
        detail = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.sink(Progress(self.stage, done / max(1, total), detail, rate * (total - done)))
