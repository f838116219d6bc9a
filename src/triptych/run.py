"""One run, stage by stage: pre-train, train, evaluate, measure, visualize, record."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from triptych.composition import to_plain, to_run_config
from triptych.config import RunConfig
from triptych.records import (
    RECORD,
    SCHEMA,
    folder_lock,
    git_state,
    machine,
    now,
    read_json,
    read_record,
    versions,
    write_atomically,
    write_json,
)
from triptych.signals import at_signals
from triptych.stages import cell_folder, cell_key, cell_name, labels, study_folder

UNITS = {
    "test/accuracy": "fraction",
    "test/accuracy_top5": "fraction",
    "test/accuracy_commonest": "fraction",
    "test/loss": "nats",
}
# Sections of which every number is a share of images, or a ratio of such.
SHARES = ("corruption", "perturbation", "resolution")
TRACEBACK = "traceback.txt"


def unit_of(metric: str) -> str:
    """The unit of a metric that a task measures."""
    precision = metric.startswith(("test/box_ap", "test/mask_ap"))
    return "fraction" if precision or metric.partition("/")[0] in SHARES else UNITS[metric]


def run_cell_file(path: Path) -> None:
    """Run the cell whose resolved configuration is in ``path``, for a launcher."""
    from triptych.legality import check
    from triptych.tasks.progress import ProgressFile

    config = to_run_config(read_json(path))
    check(config)
    run_cell(config, ProgressFile(cell_folder(config)))


def run_here(config: RunConfig) -> None:
    """One run in this process, seen in the terminal; its study's report is brought up to date."""
    from rich.console import Console

    from triptych.study.outcome import report
    from triptych.study.processes import write_manifest
    from triptych.study.terminal import TerminalProgress

    console = Console()
    name = cell_name(config)
    record = read_record(cell_folder(config))
    if record is not None and record["status"] == "done":
        console.print(f"{name} is already done", highlight=False)
    else:
        with TerminalProgress(console, name) as sink:
            run_cell(config, sink)
    write_manifest(study_folder(config), [name], add=True)
    report(study_folder(config), console)


def run_cell(config: RunConfig, sink: Any) -> dict[str, Any]:
    """Run what is missing of a cell and return its record.

    Raises:
        RecordError: another process is at this cell.
        SystemExit: the process was told to stop; what was computed is kept.
    """
    folder = cell_folder(config)
    record = read_record(folder)
    if record is not None and record["status"] == "done":
        return record
    with folder_lock(folder, wait=False, what=f"the run {cell_name(config)}"):
        record = _new_record(config)
        write_json(folder / RECORD, record)
        with _recorded(record, folder), _stop_by_exception():
            steps = _stages if config.task.name.trains else _looking
            steps(config, record, folder, sink)
    return record


def _new_record(config: RunConfig) -> dict[str, Any]:
    from triptych.paths import ROOT

    return {
        "schema": SCHEMA,
        "cell": cell_name(config),
        "key": cell_key(config),
        "study": config.study,
        "status": "running",
        "message": None,
        "config": to_plain(config),
        "labels": labels(config),
        "metrics": {},
        "curves": "metrics.jsonl",
        "pictures": [],
        "timings": {},
        "versions": versions(),
        "git": git_state(ROOT),
        "machine": machine(),
        "started": now(),
        "finished": None,
    }


@contextmanager
def _recorded(record: dict[str, Any], folder: Path) -> Iterator[None]:
    """Write how the run ended, whatever the way."""
    from triptych.tasks.callbacks import Preempted

    def end(status: str, message: str | None) -> None:
        record.update(status=status, message=message, finished=now())
        write_json(folder / RECORD, record)

    (folder / TRACEBACK).unlink(missing_ok=True)
    try:
        yield
    except Preempted as stop:
        end("preempted", f"{stop}; the same command goes on from here")
        sys.exit(stop.exit_status)
    except BaseException as error:
        write_atomically(folder / TRACEBACK, traceback.format_exc())
        text = " ".join(str(error).split()) or type(error).__name__
        end("failed", f"{type(error).__name__}: {text}")
        raise
    end("done", None)


@contextmanager
def _stop_by_exception() -> Iterator[None]:
    """Between the stages that save by themselves, a signal to stop is an exception."""
    from triptych.tasks.callbacks import Preempted

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Preempted(number)

    with at_signals((signal.SIGTERM, signal.SIGINT), stop):
        yield


def _mirror(config: RunConfig, record: dict[str, Any], folder: Path) -> Any:
    from triptych.mirror import WandbMirror

    names = {"study": config.study, "cell": record["cell"]}
    return WandbMirror(config.logger, folder, config=record["config"], **names)


def _stages(config: RunConfig, record: dict[str, Any], folder: Path, sink: Any) -> None:
    import torch

    from triptych.costing import cost_metrics
    from triptych.detector_assembly import load_run_data
    from triptych.examining import run_task
    from triptych.pictures import make_pictures
    from triptych.tasks.progress import Progress
    from triptych.training import Surroundings, pretrain

    torch.set_num_threads(config.trainer.threads)
    sink(Progress("data"))
    data = load_run_data(config)
    with _mirror(config, record, folder) as mirror:
        around = Surroundings(sink, mirror.listen)
        before = pretrain(config, data, around)
        after = run_task(config, data, around)
        _add_training(record, before, after)
        _add_examination(record, after, folder)
        started = time.monotonic()
        sink(Progress("measure"))
        record["metrics"] |= cost_metrics(config, data.num_classes)
        record["timings"]["measure"] = time.monotonic() - started
        started = time.monotonic()
        sink(Progress("visualize"))
        record["pictures"], numbers = make_pictures(config, data, folder)
        record["metrics"] |= numbers
        if record["pictures"]:
            sink(Progress("pictures", 1.0, _add_visualization(record, time.monotonic() - started)))
        _gather_curves(config, folder)
        _link_weights(config, folder)
        mirror.finish(record, folder)


def _looking(config: RunConfig, record: dict[str, Any], folder: Path, sink: Any) -> None:
    """All of ``task=visualization``: a network that is there, and its pictures."""
    import torch

    from triptych.networks import load_network
    from triptych.observation import observe
    from triptych.tasks.progress import Progress
    from triptych.training import CURVES

    torch.set_num_threads(config.trainer.threads)
    started = time.monotonic()
    sink(Progress("weights"))
    network = load_network(config)
    record["timings"]["load"] = time.monotonic() - started
    with _mirror(config, record, folder) as mirror:
        started = time.monotonic()
        sink(Progress("visualize"))
        seen = observe(config, network, folder)
        record["pictures"], record["left_out"] = seen.pictures, seen.left_out
        record["metrics"] |= seen.metrics
        record["remarks"] = seen.remarks
        record["timings"]["visualize"] = time.monotonic() - started
        write_atomically(folder / CURVES, "")
        mirror.finish(record, folder)


def _add_training(
    record: dict[str, Any], before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    for name, value in after["metrics"].items():
        record["metrics"][name] = {"value": value, "unit": unit_of(name)}
    seconds = {"pretrain": before["seconds"] if before else 0.0, "task": after["seconds"]}
    record["timings"] |= seconds
    for name, value in (seconds | {"total": sum(seconds.values())}).items():
        record["metrics"][f"time/{name}"] = {"value": value, "unit": "s"}
    for name, notes in (("pretrain", before), ("task", after)):
        if notes is not None and "waited" in notes:
            share = notes["waited"] / max(notes["seconds"], 1e-9)
            record["metrics"][f"time/{name}/data_wait"] = {"value": share, "unit": "fraction"}


def _add_visualization(record: dict[str, Any], seconds: float) -> str:
    """Note what the pictures took, and their share of the training; the same in words."""
    record["timings"]["visualize"] = seconds
    trained = record["metrics"]["time/total"]["value"]
    record["metrics"]["time/visualize"] = {"value": seconds, "unit": "s"}
    if not trained:  # a classifier from a file
        return f"{seconds:.1f} s"
    share = seconds / trained
    record["metrics"]["time/visualize/share"] = {"value": share, "unit": "fraction"}
    return f"{seconds:.1f} s, {share:.1%} of the training"


def _add_examination(record: dict[str, Any], after: dict[str, Any], folder: Path) -> None:
    """What an examination took and found: tables as CSV beside the record, remarks in it."""
    import pandas as pd

    if "tables" not in after:
        return
    record["timings"]["examine"] = after["seconds_examined"]
    record["remarks"] = after["remarks"]
    for name, rows in after["tables"].items():
        write_atomically(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))


def _link_weights(config: RunConfig, folder: Path) -> None:
    """Weights of the run's stages beside its record, as hard links: no second copy on disk."""
    from triptych.stages import pretrain_stage, task_stage
    from triptych.training import BACKBONE, WEIGHTS

    wanted = {"task": task_stage(config).folder / WEIGHTS}
    if config.pretrain.name.trains:
        wanted["pretrain"] = pretrain_stage(config).folder / WEIGHTS
        wanted["pretrained_backbone"] = pretrain_stage(config).folder / BACKBONE
    target = folder / "checkpoints"
    target.mkdir(exist_ok=True)
    for name, source in wanted.items():
        link = target / f"{name}.safetensors"
        link.unlink(missing_ok=True)
        link.hardlink_to(source)


def _gather_curves(config: RunConfig, folder: Path) -> None:
    """Put the curves of the run's stages, shared or own, beside its record."""
    from triptych.stages import pretrain_stage, task_stage
    from triptych.training import CURVES

    stages = [task_stage(config)]
    if config.pretrain.name.trains:
        stages.insert(0, pretrain_stage(config))
    text = "".join((stage.folder / CURVES).read_text() for stage in stages)
    write_atomically(folder / CURVES, text)
