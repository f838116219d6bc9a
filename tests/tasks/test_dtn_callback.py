"""DTN's curves: what is logged, when, under which names, and that a kill changes none of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from triptych.data.images import ImageSource, ImageSpec, load_images
from triptych.data.loading import make_loader
from triptych.norms import DynamicTokenNorm
from triptych.tasks.callbacks import Preempted
from triptych.tasks.dtn_callback import DTNCurves, dtn_curves, dtn_table
from triptych.tasks.fit import FitSettings, fit
from triptych.tasks.metric_log import MetricLog, read_rows
from triptych.tasks.progress import Progress
from triptych.visualization.position_kernels import mixing_ratios, position_kernels

EPOCHS, STEPS = 2, 5


class Small(pl.LightningModule):
    """Two DTN layers and a head, trained so fast that the ratios move."""

    def __init__(self, mean: str = "mixed") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = DynamicTokenNorm(8, 2, (4, 4), mean=mean)
        self.second = DynamicTokenNorm(8, 1, (4, 4), mean=mean)
        self.head = nn.Linear(8, 10)

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        tokens = nn.functional.unfold(batch[0][:, :1], 4, stride=4).transpose(1, 2)[..., :8]
        logits = self.head(self.second(self.first(tokens)).tanh().mean(1))
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.1)


def train(folder: Path, module: Small, sink=lambda _: None) -> list[dict]:
    spec = ImageSpec(ImageSource.synthetic, image_size=16, synthetic_images=100)
    data = load_images(spec, seed=3)
    loader = make_loader(data.train, batch_size=16, seed=5, shuffle=True, drop_last=True)
    log = MetricLog(folder / "metrics.jsonl", "task")
    settings = FitSettings(EPOCHS, accelerator="cpu", checkpoint_every=2)
    callbacks = dtn_curves(log, module)
    fit(module, loader, None, folder, settings, log=log, seed=7, sink=sink, callbacks=callbacks)
    return read_rows(log.path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, list[dict]]:
    module = Small()
    return module, train(tmp_path_factory.mktemp("whole"), module)


def inner(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["name"].startswith("dtn/")]


def test_every_layer_head_and_quantity_has_a_curve_from_the_start(trained) -> None:
    _, rows = trained
    names = {row["name"] for row in inner(rows)}
    quantities = ("lambda_mean", "lambda_variance", "centre_y", "centre_x", "width")
    assert names == {
        f"dtn/{layer}/{quantity}/head{head}"
        for layer, heads in (("first", 2), ("second", 1))
        for quantity in quantities
        for head in range(heads)
    }
    curve = [row for row in rows if row["name"] == "dtn/first/lambda_mean/head1"]
    steps = max(row["step"] for row in rows) // EPOCHS
    assert [(row["epoch"], row["step"]) for row in curve] == [(0, 0), (0, steps), (1, 2 * steps)]
    assert curve[0]["value"] == 0.5
    assert len({row["value"] for row in curve}) == 3


def test_the_last_values_are_those_of_the_trained_layers(trained) -> None:
    module, rows = trained
    last = {row["name"]: row["value"] for row in inner(rows)}
    for layer in ("first", "second"):
        norm = getattr(module, layer)
        mean, variance = mixing_ratios(norm)
        kernels = position_kernels(norm)
        for head in range(norm.num_heads):
            assert last[f"dtn/{layer}/lambda_mean/head{head}"] == float(mean[head])
            assert last[f"dtn/{layer}/lambda_variance/head{head}"] == float(variance[head])
            assert last[f"dtn/{layer}/centre_y/head{head}"] == float(kernels.centre[head, 0])
            assert last[f"dtn/{layer}/centre_x/head{head}"] == float(kernels.centre[head, 1])
            assert last[f"dtn/{layer}/width/head{head}"] == float(kernels.width[head])


@pytest.mark.parametrize("when", [1, 4, 7])
def test_a_stopped_run_writes_the_curves_of_a_whole_one(trained, tmp_path: Path, when: int) -> None:
    heard: list[Progress] = []

    def stop(progress: Progress) -> None:
        heard.append(progress)
        if len(heard) == when:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(tmp_path, Small(), stop)
    assert train(tmp_path, Small()) == trained[1]


def test_without_dtn_there_is_no_callback(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", "task")
    assert dtn_curves(log, nn.Sequential(nn.LayerNorm(4))) == []
    (found,) = dtn_curves(log, nn.Sequential(DynamicTokenNorm(4, 1, 3)))
    assert isinstance(found, DTNCurves)


def test_a_mean_that_is_not_mixed_has_no_curve_and_the_ratio_one(tmp_path: Path) -> None:
    rows = train(tmp_path, Small(mean="token"))
    assert not [row for row in rows if "lambda_mean" in row["name"]]
    table = dtn_table(rows)
    assert {row["lambda_mean"] for row in table} == {1.0}
    assert {row["head"] for row in table if row["layer"] == "first"} == {0, 1}


def test_the_table_counts_epochs_from_the_start(trained) -> None:
    rows = trained[1]
    table = dtn_table(rows)
    assert len(table) == (EPOCHS + 1) * 3
    assert [row["epochs"] for row in table if (row["layer"], row["head"]) == ("second", 0)] == [
        0, 1, 2,
    ]  # fmt: skip
    assert len({tuple(row) for row in table}) == 1, "every row has the same keys"
    curve = [row["value"] for row in rows if row["name"] == "dtn/first/width/head1"]
    assert curve == [r["width"] for r in table if (r["layer"], r["head"]) == ("first", 1)]
    assert dtn_table([row for row in rows if row["name"] == "train/loss"]) == []
