"""The other processes that train a stage, where ``trainer.strategy`` asks for more than one.

The process of the run is rank 0 of each stage: it alone locks, writes and measures. For as long as
a stage trains it keeps one companion for each other device, which makes the same network and
loader from the same configuration and takes its own part of every batch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.distributed import DistError

from triptych.choices import Accelerator, Strategy
from triptych.composition import to_plain
from triptych.config import ConfigError, RunConfig
from triptych.records import write_json
from triptych.tasks.callbacks import Preempted
from triptych.tasks.shares import Share

GRACE_SECONDS = 60.0
POLL_SECONDS = 0.05


def device_count(config: RunConfig) -> int:
    """Processes that share a batch: as configured, or one for each GPU of this machine.

    Raises:
        ConfigError: neither is known.
    """
    trainer = config.trainer
    if trainer.strategy is Strategy.single:
        return 1
    found = torch.cuda.device_count() if trainer.accelerator is not Accelerator.cpu else 0
    if trainer.devices is None and not found:
        raise ConfigError(
            f"trainer.devices has no value, and there is no GPU to count for trainer.strategy="
            f"{trainer.strategy}; give the number of processes, for example trainer.devices=8."
        )
    return trainer.devices or found


def check_sharing(config: RunConfig, stage: str, batch_size: int, samples: int) -> None:
    """Refuse a batch that does not come apart into equal parts.

    Raises:
        ConfigError: one sentence with the nearest batch that does.
    """
    devices, pieces = device_count(config), config.trainer.accumulate
    parts, batch = devices * pieces, min(batch_size, samples)
    task = config.task
    if parts > 1 and stage == "task" and (task.mixup > 0 or task.cutmix > 0):
        parts *= 2  # mixing is between neighbours, which must not be parted
    if parts > 1 and batch % parts:
        low = max(parts, batch // parts * parts)
        whose = "" if batch == batch_size else f" (there are {samples} samples)"
        raise ConfigError(
            f"a batch of {batch}{whose} does not come apart into equal parts for {devices} "
            f"devices with trainer.accumulate={pieces}; give {stage}.batch_size={low}."
        )


@dataclass(frozen=True)
class Company:
    """The share of this process, and the processes that have the others."""

    share: Share
    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def wait(self) -> None:
        """Wait until all are ready to train: who waits inside a library is told of no failure.

        Raises:
            RuntimeError: one has ended.
        """
        for rank, process in enumerate(self.processes, start=1):
            while not _ready(self.folder, rank).exists():
                status = process.poll()
                if status is not None:
                    raise RuntimeError(_ended(self.folder, rank, status))
                time.sleep(POLL_SECONDS)


@contextmanager
def companions(config: RunConfig, stage: str, folder: Path) -> Iterator[Company]:
    """The share of this process; meanwhile the companions have theirs.

    Raises:
        RuntimeError: a companion failed; its output is beside the stage's product.
    """
    world, pieces = device_count(config), config.trainer.accumulate
    share = Share(0, world, pieces, _free_port() if world > 1 else 0)
    processes = [_start(config, stage, folder, share, rank) for rank in range(1, world)]
    try:
        yield Company(share, folder, processes)
    except Preempted:
        _join(processes)
        raise
    except BaseException as error:
        told = _stop(processes, folder)
        # What this process found by itself says more than that the others then ended too.
        if told is not None and (type(error) is RuntimeError or isinstance(error, DistError)):
            raise RuntimeError(told) from error
        raise
    _join(processes)


def _start(
    config: RunConfig, stage: str, folder: Path, share: Share, rank: int
) -> subprocess.Popen[bytes]:
    path = folder / f"rank{rank}.json"
    _ready(folder, rank).unlink(missing_ok=True)
    own = asdict(replace(share, rank=rank))
    what = {"config": to_plain(config), "share": own, "stage": stage, "folder": str(folder)}
    write_json(path, what)
    with _log(folder, rank).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "triptych", "companion", str(path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals reach the process of the run, which tells the others
        )


def end_with_the_run() -> None:
    """End this companion as soon as the process that started it is gone, however it went."""

    def wait() -> None:
        # Not by sys.stdin, whose lock would be in the way at the end of the interpreter.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def say_ready(folder: Path, share: Share) -> None:
    """Tell the process of the run that this companion has all it needs."""
    _ready(folder, share.rank).touch()


def _ready(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.ready"


def _ended(folder: Path, rank: int, status: int) -> str:
    return (
        f"the process of rank {rank} ended with status {status}; its output is in "
        f"{_log(folder, rank)}"
    )


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _join(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _hang_up(process)


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _stop(processes: list[subprocess.Popen[bytes]], folder: Path) -> str | None:
    """End the companions; a sentence about the one that had failed before, if one had."""
    told = None
    for rank, process in enumerate(processes, start=1):
        status = process.poll()
        _hang_up(process)
        if status is None:
            process.kill()
            process.wait()
        elif status:
            told = told or _ended(folder, rank, status)
    return told
