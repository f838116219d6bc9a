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
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

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
from triptych.tasks.pretraining import PretrainingModule
from triptych.tasks.progress import ProgressSink
from triptych.tasks.sharded import ShardedStrategy
from triptych.tasks.shares import Meeting, PartOfBatch, Share, share_drop_paths

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
    strategy: str = "single"
    compiled: bool = False


@dataclass(frozen=True)
class Fitted:
    """What training took, earlier processes included, and the weights where they lie in pieces.

    ``waited`` are the seconds of ``seconds`` in which there was no batch to train on. ``weights``:
    the state of the module after sharded training, whose own parameters are pieces; else None.
    """

    seconds: float
    waited: float
    weights: dict[str, Tensor] | None = None


class Waiting(Callback):
    """Keeps in every checkpoint how long training has waited for data."""

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader

    def state_dict(self) -> dict[str, float]:
        return {"waited": self.loader.waited}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.loader.waited = state_dict["waited"]


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
            # Of single-channel patch embeddings, whose strides have no meaning.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket.*")
            yield
    finally:
        for name, level in former.items():
            logging.getLogger(name).setLevel(level)


def fit(
    module: pl.LightningModule,
    train: ResumableLoader,
    test: ResumableLoader | None,
    folder: Path,
    settings: FitSettings,
    *,
    log: MetricLog,
    seed: int,
    sink: ProgressSink,
    callbacks: Sequence[Callback] = (),
    share: Share | None = None,
) -> Fitted:
    """Train ``module`` in ``folder``, going on from the newest whole checkpoint there.

    ``callbacks`` are called before the end of an epoch is written to a checkpoint. ``share`` says
    which part of each batch ``train`` and ``test`` give; all other processes of it must fit too.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
        NonFiniteError: a gradient is not finite.
        Preempted: the process was told to stop; a checkpoint has been written.
    """
    share = share or Share()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = usable_checkpoint(folder)
    epoch, batch = _position(checkpoint)
    train.set_position(epoch, batch * share.pieces)
    log.rewind(epoch)
    log.replay()
    timer, saver = Timer(), Checkpointing(folder, settings.checkpoint_every)
    place = PartOfBatch(share)
    if share.parts > 1:
        share_drop_paths(module, place)
    if settings.compiled:
        network = module.model
        assert isinstance(network, nn.Module)
        network.compile()  # in place: the names in checkpoints stay
    own: list[Callback] = [timer, Waiting(train), StepSeed(seed, log.stage), place, Position()]
    own += [FiniteGuard(folder), *callbacks, CurveWriter(log), ProgressReporter(sink, log.stage)]
    with quiet_lightning(), saver.listening(), _met():
        strategy = _strategy(settings, share, module)
        trainer = _trainer(settings, share, folder, strategy, [*own, saver])
        trainer.fit(module, train, test, ckpt_path=checkpoint, weights_only=True)
        sharded = isinstance(trainer.strategy, ShardedStrategy)
        weights = trainer.strategy.lightning_module_state_dict() if sharded else None
    return Fitted(timer.time_elapsed("train"), train.waited, weights)


def _trainer(
    settings: FitSettings,
    share: Share,
    folder: Path,
    strategy: str | Strategy,
    callbacks: list[Callback],
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=share.world_size,
        strategy=strategy,
        accumulate_grad_batches=share.pieces,
        use_distributed_sampler=False,
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
        callbacks=callbacks,
    )


def _strategy(settings: FitSettings, share: Share, module: pl.LightningModule) -> str | Strategy:
    if settings.strategy == "single":
        return "auto"
    meeting = Meeting(share)
    # A masked image model shares the modules of a backbone, but not all take part in its loss.
    masked = isinstance(module, PretrainingModule)
    if settings.strategy == "fsdp":
        return ShardedStrategy(units=not masked, cluster_environment=meeting)
    return DDPStrategy(cluster_environment=meeting, find_unused_parameters=masked)


@contextmanager
def _met() -> Iterator[None]:
    """Leave the other processes when training is over: the next stage meets anew."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


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
