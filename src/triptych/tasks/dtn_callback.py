"""Curves of what DTN learns: mixing ratios and kernels, layer by layer and head by head."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from triptych.norms import DynamicTokenNorm
from triptych.tasks.metric_log import DTN_SECTION, MetricLog, Row
from triptych.visualization.position_kernels import dtn_layers, mixing_ratios, position_kernels


class DTNCurves(Callback):
    """Writes to the metric log what DTN layers hold, at the start and after every epoch.

    The names are ``dtn/LAYER/QUANTITY/headH``; LAYER is the module path in the backbone. The
    quantities are ``lambda_mean`` and ``lambda_variance`` (left out where the mean is not mixed),
    ``centre_y``, ``centre_x`` and ``width``: mean offset and standard deviation of the kernel seen
    from the centre of the grid, in tokens. The start has step 0 of epoch 0.
    """

    def __init__(self, log: MetricLog, layers: dict[str, DynamicTokenNorm]) -> None:
        self.curves = log
        self.layers = layers
        self.start: dict[str, float] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["start"]

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # Written with the first epoch only: a run resumed within it begins its curves anew.
        if trainer.global_step == 0:
            self.start = self._values()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0 and self.start is not None:
            self.curves.append(0, 0, self.start)
        self.curves.append(trainer.current_epoch, trainer.global_step, self._values())

    def _values(self) -> dict[str, float]:
        return {
            f"{DTN_SECTION}/{path}/{quantity}/head{head}": value
            for path, norm in self.layers.items()
            for quantity, values in _quantities(norm).items()
            for head, value in enumerate(values)
        }


def dtn_curves(log: MetricLog, backbone: nn.Module) -> list[Callback]:
    """The callback where ``backbone`` has DTN layers; nothing, at no cost, where it has none."""
    layers = dtn_layers(backbone)
    return [DTNCurves(log, layers)] if layers else []


def _quantities(norm: DynamicTokenNorm) -> dict[str, list[float]]:
    mean_H, variance_H = mixing_ratios(norm)
    kernels = position_kernels(norm)
    ratios = {"lambda_mean": mean_H} if norm.mean == "mixed" else {}
    return {
        name: values_H.tolist()
        for name, values_H in (
            ratios
            | {
                "lambda_variance": variance_H,
                "centre_y": kernels.centre[:, 0],
                "centre_x": kernels.centre[:, 1],
                "width": kernels.width,
            }
        ).items()
    }


def dtn_table(rows: list[Row]) -> list[dict[str, object]]:
    """The curves in ``rows`` as a table: a row for each stage, point in time, layer and head.

    ``epochs`` counts the epochs trained in that stage, 0 at its start. A mean that is not mixed
    has the ratio 1. Empty where ``rows`` hold no such curves.
    """
    table: dict[tuple[object, ...], dict[str, object]] = {}
    for row in rows:
        section, *place = str(row["name"]).split("/")
        if section != DTN_SECTION:
            continue
        layer, quantity, head = place
        epochs = row["epoch"] + 1 if row["step"] else 0
        named = {"stage": row["stage"], "epochs": epochs, "layer": layer}
        named["head"] = int(head.removeprefix("head"))
        entry = table.setdefault(tuple(named.values()), named | {"lambda_mean": 1.0})
        entry[quantity] = row["value"]
    return list(table.values())
