"""Run a Lightning module to the end, from wherever an earlier process got to."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Timer
from torch.utils.data import DataLoader

from triptych.data.loading import ResumableLoader
from triptych.tasks.callbacks import (
    Checkpointing,
    CurveWriter,
    FiniteGuard,
    Position,
    ProgressReporter,
    StepSeed,
)
from triptych.tasks.checkpoints import AtomicCheckpointIO, usable_checkpoint
from triptych.tasks.metric_log import MetricLog
from triptych.tasks.progress import ProgressSink

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class FitSettings:
    """How to train; nothing here but precision changes the result."""

    epochs: int
    accelerator: str = "auto"
    precision: str = "fp32"
    deterministic: bool = True
    checkpoint_every: int = 200
    clip_grad: float | None = None
    evaluate_every: int = 1


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's adverts and its hints about workers are not for the user of a pipeline."""
    names = ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda")
    former = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*logging interval.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*mid-epoch.*")
            yield
    finally:
        for name, level in former.items():
            logging.getLogger(name).setLevel(level)


def fit(
    module: pl.LightningModule,
    train: ResumableLoader,
    test: DataLoader | None,
    folder: Path,
    settings: FitSettings,
    *,
    log: MetricLog,
    seed: int,
    sink: ProgressSink,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train ``module`` in ``folder``, going on from the newest whole checkpoint there.

    ``callbacks`` are called before the end of an epoch is written to a checkpoint.

    Returns the seconds that training took, those of earlier processes included.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
        NonFiniteError: a gradient is not finite.
        Preempted: the process was told to stop; a checkpoint has been written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = usable_checkpoint(folder)
    epoch, batch = _position(checkpoint)
    train.set_position(epoch, batch)
    log.rewind(epoch)
    log.replay()
    timer, saver = Timer(), Checkpointing(folder, settings.checkpoint_every)
    with quiet_lightning(), saver.listening():
        trainer = pl.Trainer(
            accelerator=settings.accelerator,
            devices=1,
            precision=PRECISION[settings.precision],  # type: ignore[arg-type]
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip_grad,
            deterministic=settings.deterministic,
            check_val_every_n_epoch=settings.evaluate_every,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                timer,
                StepSeed(seed, log.stage),
                Position(),
                FiniteGuard(folder),
                *callbacks,
                CurveWriter(log),
                ProgressReporter(sink, log.stage),
                saver,
            ],
        )
        trainer.fit(module, train, test, ckpt_path=checkpoint, weights_only=True)
    return timer.time_elapsed("train")


def _position(checkpoint: Path | None) -> tuple[int, int]:
    """Epoch and batch that come next after a checkpoint; zeros where there is none."""
    if checkpoint is None:
        return 0, 0
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
    epoch, batch = state[Position.KEY]
    return int(epoch), int(batch)


def pick_device(accelerator: str) -> torch.device:
    """The device that Lightning will use, for what happens outside the trainer."""
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")
