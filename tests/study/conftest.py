"""A study on disk as runs leave it: records, curves and pictures, with numbers made from seeds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

NORMS = ("ln", "dtn")
PRETRAINS = ("none", "standard", "greenmim")
PICTURES = (
    ("rollout", "Attention rollout", "Rollout from the mean token, first six test images."),
    ("grouping", "Token grouping", "k-means of the last layer's tokens."),
)
GAIN = {"none": 0.0, "standard": 0.011, "greenmim": 0.013}
EPOCHS = 8

Record = dict[str, Any]


def make_record(norm: str, pretrain: str, seed: int, *, backbone: str = "swin_nano") -> Record:
    """A done record whose metrics depend on its labels and, by a little, on its seed."""
    noise = np.random.default_rng([seed, NORMS.index(norm), PRETRAINS.index(pretrain)])
    shared = np.random.default_rng(seed).normal(0, 0.006)
    dtn = norm == "dtn"
    accuracy = 0.941 + 0.008 * dtn + GAIN[pretrain] + shared + noise.normal(0, 0.0022)
    slow = 1.7 if dtn else 1.0
    pretrain_seconds = {"none": 0.0, "standard": 44.0, "greenmim": 15.5}[pretrain] * slow
    task_seconds = 31.0 * slow + noise.normal(0, 0.5)
    cell = f"{backbone}-{norm}-{pretrain}-mnist_5k-classification-seed{seed}-1a2b3c4d"
    metrics = {
        "test/accuracy": (round(float(accuracy), 4), "fraction"),
        "test/loss": (float(0.2 - 0.1 * accuracy), "nat"),
        "cost/parameters": (95_210 + 832 * dtn, "count"),
        "cost/task/macs": (1.1e7 * (1.08 if dtn else 1), "MAC/image"),
        "cost/task/train_throughput": (812 / slow, "images/s"),
        "cost/task/inference_throughput": (4000 / slow, "images/s"),
        "cost/task/peak_memory": (123.4 * (1.3 if dtn else 1), "MiB"),
        "cost/task/saved_for_backward": (4.2 * (1.4 if dtn else 1), "MiB/image"),
        "time/task": (float(task_seconds), "s"),
    }
    if pretrain != "none":
        metrics["time/pretrain"] = (pretrain_seconds, "s")
        metrics["cost/pretrain/train_throughput"] = (1.6e5 / pretrain_seconds, "images/s")
    return {
        "schema": 1,
        "cell": cell,
        "key": f"{seed:032x}",
        "study": "compare",
        "status": "done",
        "message": None,
        "config": {
            "study": "compare",
            "seed": seed,
            "output_dir": "outputs",
            "backbone": {"name": backbone, "depths": [2, 2]},
            "norm": {"name": norm},
            "pretrain": {"name": pretrain, "epochs": 0 if pretrain == "none" else EPOCHS},
            "data": {"name": "mnist_5k", "workers": 0},
            "task": {"name": "classification", "learning_rate": 0.001},
            "logger": {"wandb": "offline", "project": "triptych", "entity": None},
        },
        "labels": {
            "backbone": backbone,
            "norm": norm,
            "pretrain": pretrain,
            "data": "mnist_5k",
            "task": "classification",
            "seed": seed,
        },
        "metrics": {name: {"value": v, "unit": unit} for name, (v, unit) in metrics.items()},
        "curves": "metrics.jsonl",
        "pictures": [
            {
                "name": name,
                "title": title,
                "file": f"pictures/{name}.png",
                "numbers": f"pictures/{name}.csv",
                "caption": caption,
            }
            for name, title, caption in PICTURES
        ],
        "timings": {"pretrain": pretrain_seconds, "task": float(task_seconds)},
        "versions": {"python": "3.11.7", "torch": "2.14.1", "timm": "1.0.31"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "machine": {"cpu": "AMD EPYC", "cores": 2, "gpu": None, "system": "Linux"},
        "started": f"2026-01-01T0{seed}:00:00+00:00",
        "finished": f"2026-01-01T0{seed}:05:00+00:00",
    }


def write_run(folder: Path, record: Record) -> None:
    """Lay the files of a run where its record says."""
    run = folder / "runs" / record["cell"]
    (run / "pictures").mkdir(parents=True)
    (run / "record.json").write_text(json.dumps(record))
    rows = [json.dumps(row) for row in curve_rows(record)]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    for picture in record["pictures"]:
        _draw(record, picture["name"]).save(run / picture["file"])
        (run / picture["numbers"]).write_text("layer,value\n0,1.0\n")


def curve_rows(record: Record) -> list[dict[str, Any]]:
    labels = record["labels"]
    noise = np.random.default_rng(labels["seed"] + 10)
    final = record["metrics"]["test/accuracy"]["value"]
    rows = []
    for epoch in range(EPOCHS):
        done = 1 - np.exp(-(epoch + 1) / 2)
        values = {"train/loss": 2.3 - 2.1 * done, "val/accuracy": final * done}
        rows += [
            {"stage": "task", "epoch": epoch, "step": 32 * (epoch + 1), "name": name, "value": v}
            for name, v in _noisy(values, noise).items()
        ]
        if labels["pretrain"] != "none":
            loss = {"train/loss": 0.9 - (0.5 + 0.04 * (labels["norm"] == "dtn")) * done}
            rows += [
                {
                    "stage": "pretrain",
                    "epoch": epoch,
                    "step": 32 * (epoch + 1),
                    "name": k,
                    "value": v,
                }
                for k, v in _noisy(loss, noise).items()
            ]
    return rows


def _noisy(values: dict[str, float], noise: np.random.Generator) -> dict[str, float]:
    return {name: float(value + noise.normal(0, 0.01)) for name, value in values.items()}


def _draw(record: Record, name: str) -> Image.Image:
    """A small picture that differs between cells and seeds: rows of patches in gradients."""
    labels = record["labels"]
    noise = np.random.default_rng([labels["seed"], len(labels["norm"] + labels["pretrain"] + name)])
    grid = noise.random((6, 18, 3)) * 255
    image = Image.fromarray(grid.astype(np.uint8)).resize((360, 120), Image.Resampling.NEAREST)
    ImageDraw.Draw(image).text((8, 6), f"{name} {labels['norm']}", fill="white")
    return image


@pytest.fixture(scope="session")
def full_records() -> list[Record]:
    """6 cells × 3 seeds, all done."""
    return [make_record(n, p, s) for n in NORMS for p in PRETRAINS for s in range(3)]


@pytest.fixture
def records(full_records: list[Record]) -> list[Record]:
    """A copy of the records that a test may change."""
    return copy.deepcopy(full_records)


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[list[Record]], Path]:
    """Writes the runs of some records and returns the study's folder."""

    def write(records: list[Record]) -> Path:
        for record in records:
            write_run(tmp_path, record)
        return tmp_path

    return write
