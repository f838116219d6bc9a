"""The pictures of an examination: its tables drawn, and what an image was turned into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from triptych.choices import DataName, TaskName
from triptych.config import RunConfig
from triptych.data.corruptions.dataset import CorruptedImages, as_bytes
from triptych.data.images import ImageData
from triptych.data.samples import SampleKey
from triptych.stages import task_stage
from triptych.tasks.perturbation import SHUFFLE, disturbed
from triptych.tasks.robustness import asked
from triptych.visualization.figures.examination import corruption_figure, resolution_figure
from triptych.visualization.figures.mosaic import Panel, mosaic_figure
from triptych.visualization.figures.perturbation import robustness_figure
from triptych.visualization.picture import Picture

Row = dict[str, Any]
# The test image of which all corruptions are shown.
SHOWN = 0
_DRAWN_AS = {
    "none": "none",
    "random": "drop random",
    "salient": "drop salient",
    "non_salient": "drop non_salient",
    SHUFFLE: "shuffle",
}


def examination_pictures(config: RunConfig, data: ImageData) -> list[Picture]:
    """What the run's examination found; none for a task that examines nothing."""
    draw = _DRAW.get(config.task.name)
    if draw is None:
        return []
    notes = task_stage(config).done() or {}
    return draw(config, data, notes)


def _corruptions(config: RunConfig, data: ImageData, notes: dict[str, Any]) -> list[Picture]:
    rows = notes["tables"]["corruptions"]
    remarks = " ".join(f"{remark[:1].upper()}{remark[1:]}." for remark in notes["remarks"])
    table = Picture(
        "corruptions",
        "Errors under corruptions",
        "Share of test images that are classified wrongly under each corruption of Hendrycks and "
        f"Dietterich at severities 1 to 5. {remarks}".rstrip(),
        corruption_figure(rows, clean=notes["metrics"]["corruption/clean_error"]),
        rows,
    )
    examples = [] if config.data.name is DataName.imagenet_c else [_examples(config, data)]
    return [table, *examples]


def _examples(config: RunConfig, data: ImageData) -> Picture:
    """One test image under all that was asked, with its mean distance from itself."""
    batch = data.test.__getitems__([SampleKey(0, SHOWN)])
    before = as_bytes(batch.images, data.mean, data.std)
    rows: list[Row] = []
    panels: dict[str, list[Panel | None]] = {}
    for corruption, severity in asked(config.task.corruptions, config.task.severities):
        images = CorruptedImages(data.test, corruption, severity, mean=data.mean, std=data.std)
        after = images.corrupted(before, batch.indices)
        distance = float((after.float() - before.float()).abs().mean() / 255)
        rows.append(
            {"corruption": str(corruption), "severity": severity, "mean_distance": distance}
        )
        panels.setdefault(corruption, []).append(Panel(_shown(after), f"{distance:.3f}"))
    return Picture(
        "corruption_examples",
        "A test image under every corruption",
        "The numbers are the mean distance from the clean image, of pixels in [0, 1].",
        mosaic_figure(
            list(panels.values()),
            columns=[str(severity) for severity in sorted(config.task.severities)],
            labels=[name.replace("_", " ") for name in panels],
            title="severity",
        ),
        rows,
    )


def _shown(pixels_1CSS: Tensor) -> np.ndarray:
    return pixels_1CSS[0].permute(1, 2, 0).numpy() / 255


def _perturbations(config: RunConfig, data: ImageData, notes: dict[str, Any]) -> list[Picture]:
    rows: list[Row] = notes["tables"]["perturbation"]
    drawn = [
        {
            "disturbance": _DRAWN_AS[row["kind"]],
            "amount": _cells_on_a_side(row) if row["kind"] == SHUFFLE else row["amount"],
            "number": "accuracy",
            "mean": row["accuracy"],
            "ci_low": row["ci_low"],
            "ci_high": row["ci_high"],
        }
        for row in rows
        # The figure's axis has cells to a side: square grids alone.
        if row["kind"] != SHUFFLE or len(set(row["grid"].split("x"))) == 1
    ]
    curves = Picture(
        "perturbation",
        "Accuracy under occlusion and shuffling",
        "Accuracy on test images with a share of cells blackened, of all cells, of those on "
        "objects or of those beside them, and with cells shuffled; bands are 95 % intervals over "
        "images. Objects are guessed from the pixels. Chance is dashed.",
        robustness_figure(drawn, chance=1 / data.num_classes),
        rows,
    )
    return [curves, _disturbed_examples(data)]


def _cells_on_a_side(row: Row) -> int:
    return int(row["grid"].split("x")[0])


def _disturbed_examples(data: ImageData) -> Picture:
    batch = data.test.__getitems__([SampleKey(0, SHOWN)])
    pixels = as_bytes(batch.images, data.mean, data.std)
    panels: dict[str, list[Panel | None]] = {}
    rows: list[Row] = []
    for (kind, amount), grid, after in disturbed(pixels, batch.indices.tolist(), 0):
        name = f"{grid[0]}x{grid[1]}" if kind == SHUFFLE else f"{amount:.0%}"
        distance = float((after.float() - pixels.float()).abs().mean() / 255)
        rows.append({"kind": kind, "amount": amount, "mean_distance": distance})
        panels.setdefault(kind, []).append(Panel(_shown(after), name))
    columns = max(map(len, panels.values()))
    return Picture(
        "perturbation_examples",
        "A test image, occluded and shuffled",
        "Cells blackened at rising shares, and shuffled on finer grids.",
        mosaic_figure(
            [[*row, *[None] * (columns - len(row))] for row in panels.values()],
            columns=[""] * columns,
            labels=[kind.replace("_", " ") for kind in panels],
            title="",
        ),
        rows,
    )


def _resolutions(config: RunConfig, data: ImageData, notes: dict[str, Any]) -> list[Picture]:
    rows = notes["tables"]["resolution"]
    return [
        Picture(
            "resolution",
            "Accuracy at other image sizes",
            "Accuracy on the test images at each size; nothing was trained again. Chance is "
            "dashed.",
            resolution_figure(rows, trained=config.data.image_size, chance=1 / data.num_classes),
            rows,
        )
    ]


_DRAW: dict[TaskName, Callable[[RunConfig, ImageData, dict[str, Any]], list[Picture]]] = {
    TaskName.robustness: _corruptions,
    TaskName.perturbation: _perturbations,
    TaskName.resolution: _resolutions,
}
