"""Run the cells of a study, each in a process of its own, several at a time.

A cell that fails costs the others nothing; one that is done is not run again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from triptych.composition import to_plain
from triptych.config import RunConfig
from triptych.records import read_record, write_json
from triptych.signals import at_signals
from triptych.stages import cell_folder, cell_name, pretrain_stage, study_folder
from triptych.study.display import CellView, Display

CONFIG = "config.json"
MANIFEST = "study.json"
LOG = "log.txt"
GRACE_SECONDS = 60.0


class Status(StrEnum):
    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    preempted = "preempted"


@dataclass
class Cell:
    """A run of the study and the process that makes it."""

    config: RunConfig
    status: Status = Status.waiting
    message: str = ""
    seconds: float = 0.0
    process: ForkServerProcess | None = field(default=None, repr=False)
    started: float = 0.0

    # Hashes of the configuration: the launcher asks five times a second for each cell.
    @cached_property
    def name(self) -> str:
        return cell_name(self.config)

    @cached_property
    def folder(self) -> Path:
        return cell_folder(self.config)

    @cached_property
    def pretraining(self) -> str:
        return pretrain_stage(self.config).key

    def view(self) -> CellView:
        elapsed = time.monotonic() - self.started if self.status is Status.running else self.seconds
        return CellView(self.name, str(self.status), self.message, elapsed, self.folder)


def start_process(
    target: Callable[[Path], None], argument: Path, log: Path, threads: int
) -> ForkServerProcess:
    """Call ``target(argument)`` in a process of its own, its output in ``log``.

    Importing torch, timm and Lightning takes longer than a small stage, so a server process does
    it once, and each child starts as its fork, before anything of torch is set up.
    """
    count = str(threads)
    # The server is started with the first child and takes these with it.
    os.environ |= {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["triptych.run", "triptych.pictures", "triptych.costing"])
    # Ctrl-C is the launcher's affair; the server inherits that it is to be ignored.
    with at_signals((signal.SIGINT,), signal.SIG_IGN):
        forkserver.ensure_running()
    process = context.Process(target=_child, args=(target, argument, log))
    process.start()
    return process


def _child(target: Callable[[Path], None], argument: Path, log: Path) -> None:
    # A session of its own: Ctrl-C in the terminal reaches the launcher alone.
    os.setsid()
    with log.open("wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    target(argument)


def write_manifest(study: Path, cells: list[str], *, add: bool = False) -> None:
    """Say which cells the study consists of; ``add`` keeps those that it had."""
    path = study / MANIFEST
    if add and path.exists():
        from triptych.records import read_json

        cells = list(dict.fromkeys([*read_json(path)["cells"], *cells]))
    write_json(path, {"cells": cells})


def run_cells(configs: list[RunConfig], *, jobs: int, display: Display) -> list[Cell]:
    """Run what is missing of ``configs`` and return every cell with its outcome.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the running cells have saved where they were.
    """
    cells = [Cell(config) for config in configs]
    write_manifest(study_folder(configs[0]), [cell.name for cell in cells])
    for cell in cells:
        record = read_record(cell.folder)
        if record is not None and record["status"] == "done":
            cell.status, cell.message = Status.done, "already done"
    with display, _terminated_as_interrupted():
        try:
            _measure_first(cells, display)
            while any(cell.status in (Status.waiting, Status.running) for cell in cells):
                _start_some(cells, jobs)
                for cell in cells:
                    _poll(cell)
                display.show([cell.view() for cell in cells], jobs)
                time.sleep(0.2)
        except KeyboardInterrupt:
            display.note("stopping: the running cells save where they are …")
            _stop(cells)
            raise
        display.show([cell.view() for cell in cells], jobs)
    return cells


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM, which clusters send, for Ctrl-C: else cells would go on without a launcher."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with at_signals((signal.SIGTERM,), interrupt):
        yield


def _measure_first(cells: list[Cell], display: Display) -> None:
    """Time every kind of model while nothing else runs, in one process."""
    waiting = [c for c in cells if c.status is Status.waiting and c.config.measure.enabled]
    if not waiting:
        return
    folder = study_folder(waiting[0].config)
    path = folder / "cost.json"
    write_json(path, [to_plain(cell.config) for cell in waiting])
    display.note("measuring the cost of each kind of model, with nothing else running …")
    process = start_process(
        _measure_costs, path, folder / "cost.log", waiting[0].config.trainer.threads
    )
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()
        raise
    if process.exitcode:
        display.note(f"the cost could not be measured beforehand; see {folder / 'cost.log'}")


def _measure_costs(path: Path) -> None:
    from triptych.costing import measure_file

    measure_file(path)


def _run_cell(path: Path) -> None:
    from triptych.run import run_cell_file

    run_cell_file(path)


def _start_some(cells: list[Cell], jobs: int) -> None:
    running = [cell for cell in cells if cell.status is Status.running]
    busy = {cell.pretraining for cell in running}
    for cell in cells:
        if len(running) >= jobs:
            return
        # Two cells with one pre-training between them: the second would only wait for the first.
        if cell.status is not Status.waiting or cell.pretraining in busy:
            continue
        _start(cell)
        running.append(cell)
        busy.add(cell.pretraining)


def _start(cell: Cell) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    path = cell.folder / CONFIG
    write_json(path, to_plain(cell.config))
    threads = cell.config.trainer.threads
    cell.process = start_process(_run_cell, path, cell.folder / LOG, threads)
    cell.status, cell.started = Status.running, time.monotonic()


def _poll(cell: Cell) -> None:
    if cell.process is None or cell.status is not Status.running:
        return
    code = cell.process.exitcode
    if code is None:
        return
    cell.seconds = time.monotonic() - cell.started
    record = read_record(cell.folder)
    if record is not None and record["status"] in (Status.done, Status.failed, Status.preempted):
        cell.status = Status(record["status"])
        cell.message = record["message"] or ""
    else:
        cell.status = Status.failed
        cell.message = f"its process ended with status {code}; see {cell.folder / LOG}"


def _stop(cells: list[Cell]) -> None:
    processes = [cell.process for cell in cells if cell.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
