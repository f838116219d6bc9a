"""Sweeps: each cell in a process of its own, failures contained, nothing run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from triptych.records import read_json
from triptych.study.display import CellView, clock, seconds_left
from triptych.study.processes import MANIFEST

SUMMARY = "backbone,norm,pretrain,task,data,metric,unit,mean,ci_low,ci_high,n_seeds"


def triptych(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triptych", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def sweep(
    tmp_path_factory: pytest.TempPathFactory, toy_options: list[str]
) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    command = ["-m", *toy_options, f"output_dir={folder}", "study=s", "seed=0,1", "norm=ln,dtn"]
    command += ["measure=none", "visualize=none", "logger=none"]
    done = triptych(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "s", command


def test_sweep_leaves_tables_report_and_records(sweep: tuple[Path, list[str]]) -> None:
    folder, _ = sweep
    assert (folder / "summary.csv").read_text().splitlines()[0] == SUMMARY
    table = pd.read_csv(folder / "summary.csv")
    assert set(table["norm"]) == {"ln", "dtn"}
    assert set(table["n_seeds"]) == {2}
    assert (folder / "report.html").stat().st_size > 10_000
    assert len(read_json(folder / MANIFEST)["cells"]) == 4
    assert len(pd.read_csv(folder / "differences.csv")) > 0


def test_given_again_only_the_report_is_made(sweep: tuple[Path, list[str]]) -> None:
    folder, command = sweep
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}
    again = triptych(*command)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 4
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_failed_cell_is_named_and_the_others_finish(sweep: tuple[Path, list[str]]) -> None:
    folder, command = sweep
    # A learning rate that blows up: found in training, so no check beforehand can refuse it.
    harmed = triptych(*command, "task.learning_rate=1e-3,1e30", "study=h")
    assert harmed.returncode == 1
    assert "Traceback" not in harmed.stderr
    assert "4 of 8 cells are not done; give the same command again" in harmed.stdout
    records = [read_json(path) for path in (folder.parent / "h").glob("runs/*/record.json")]
    assert sorted(record["status"] for record in records) == ["done"] * 4 + ["failed"] * 4
    for record in records:
        trace = folder.parent / "h" / "runs" / record["cell"] / "traceback.txt"
        assert trace.exists() == (record["status"] == "failed")
        if record["status"] == "failed":
            assert "NonFiniteError: the gradient of step" in record["message"]
            assert record["cell"] in harmed.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cells_stop_with_their_launcher(
    number: signal.Signals, toy_options: list[str], tmp_path: Path
) -> None:
    options = ["-m", *toy_options, f"output_dir={tmp_path}", "study=s", "seed=0,1"]
    options += ["task.epochs=100000", "measure=none", "visualize=none", "logger=none"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "triptych", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("last.ckpt"))) < 2:
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert "interrupted; give the same command again to go on." in said
    records = [read_json(path) for path in tmp_path.glob("s/runs/*/record.json")]
    assert [record["status"] for record in records] == ["preempted"] * 2


def test_illegal_cell_is_refused_before_any_starts(tmp_path: Path) -> None:
    refused = triptych(
        "-m", f"output_dir={tmp_path}", "pretrain=none,greenmim", "backbone=swin_nano,vit_nano"
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "triptych: Cell pretrain=greenmim backbone=vit_nano: pretrain=greenmim cannot be used with "
        "backbone=vit_nano: "
    )
    assert not list(tmp_path.rglob("record.json"))


def test_unknown_study_names_those_there_are() -> None:
    refused = triptych("study", "compar")
    assert refused.returncode == 2
    assert "there is no study 'compar': legal are compare, compare_fashion" in refused.stderr
    assert "did you mean compare?" in refused.stderr


def test_report_of_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    refused = triptych("report", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr == (
        f"triptych: {tmp_path} holds no study (study.json is missing); run one first, for example "
        "with make experiment.\n"
    )


def test_clock_and_estimate() -> None:
    assert clock(59) == "0:59"
    assert clock(3723) == "1:02:03"

    def view(status: str, seconds: float) -> CellView:
        return CellView("c", status, "", seconds, Path())

    assert seconds_left([view("running", 5.0)], 2) is None
    views = [view("done", 10.0), view("running", 4.0), view("waiting", 0.0)]
    assert seconds_left(views, 2) == pytest.approx((6 + 10) / 2)
