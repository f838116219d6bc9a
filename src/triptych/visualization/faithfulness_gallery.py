"""Deletion and insertion curves of the relevance methods, beside a random order.

Shapes: B images, G cells, S steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.visualization.attention_gradients import capture_gradients
from triptych.visualization.capture import evaluating
from triptych.visualization.faithfulness import Faithfulness, faithfulness_by_method
from triptych.visualization.figures.faithfulness import faithfulness_figure
from triptych.visualization.grad_cam import token_grad_cam
from triptych.visualization.intervals import mean_over_images
from triptych.visualization.perturbations import Grid, generator_of
from triptych.visualization.picture import Picture
from triptych.visualization.relevance import class_relevance
from triptych.visualization.rollout import image_relevance

RANDOM = "random order"
LEAST_CLASSES = 2
_LARGE = 128
_IMAGES = {False: 6, True: 2}
_SIDES = (8, 7, 4)
# Cells that go or come at a time in large images, by the number of cells.
_STEPS = {64: 4, 49: 7, 16: 1}


def faithfulness_gallery(model: nn.Module, images: Tensor) -> Picture | None:
    """``faithfulness``: the mean curves over the first images for the class predicted on each.

    None where no coarse grid divides the images, or the model has no classes.

    Args:
        images: (B, C, Y, X) as the model takes them; six are used, two of 128 pixels or more.
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    large = max(size) >= _LARGE
    images = images[: _IMAGES[large]]
    sides = [side for side in _SIDES if not any(edge % side for edge in size)]
    if not sides:
        return None
    grid = (sides[0], sides[0])
    step = _STEPS[sides[0] ** 2] if large else 1
    curves = faithfulness_curves(model, images, grid, step)
    if not curves:
        return None
    at_a_time = f", {step} at a time" if step > 1 else ""
    rows = _rows(curves)
    return Picture(
        name="faithfulness",
        title="Deletion and insertion",
        caption=(
            f"Probability of the class predicted on the whole image while the cells of a {grid[0]}x"
            f"{grid[1]} grid are deleted, or inserted into an empty image, most relevant first"
            f"{at_a_time}; "
            f"means over {len(images)} images. Deleted is the mean of the training pixels (0 after "
            "normalisation); the areas depend on that. A method that names what matters falls "
            "fast (small area) on the left and rises fast on the right; the random order is the "
            "anchor."
        ),
        figure=faithfulness_figure(rows, title="Deletion and insertion"),
        rows=rows,
    )


def faithfulness_curves(
    model: nn.Module, images: Tensor, grid: Grid, step: int = 1
) -> dict[str, list[Faithfulness]]:
    """Of each method the curves of each image; none for a model of a single output."""
    graded = capture_gradients(model, images)
    if graded.captured.output.shape[1] < LEAST_CLASSES:
        return {}
    target_B = graded.target
    maps = {
        "rollout": image_relevance(graded.captured),
        "gradient rollout": class_relevance(graded, rule="gradient_rollout"),
        "generic rule": class_relevance(graded, rule="generic"),
        "Grad-CAM": token_grad_cam(model, images, target_B),
    }
    scores = {name: F.adaptive_avg_pool2d(one.detach(), grid).cpu() for name, one in maps.items()}
    scores[RANDOM] = torch.stack(
        [torch.from_numpy(generator_of(3, index).random(grid)) for index in range(len(images))]
    )
    with evaluating(model):
        by_image = [
            faithfulness_by_method(
                model,
                image,
                {name: score_BG[index] for name, score_BG in scores.items()},
                grid,
                int(target_B[index]),
                step=step,
            )
            for index, image in enumerate(images)
        ]
    return {name: [one[name] for one in by_image] for name in scores}


def _rows(curves: dict[str, list[Faithfulness]]) -> list[dict[str, object]]:
    """One row per method, direction and step: mean probability; the area stands in each row."""
    rows: list[dict[str, object]] = []
    for name, own in curves.items():
        for direction in ("deletion", "insertion"):
            curve_BS = np.stack([getattr(one, direction).numpy() for one in own])
            area = mean_over_images(np.array([getattr(one, f"{direction}_area") for one in own]))
            steps = curve_BS.shape[1] - 1
            for step, value in enumerate(curve_BS.mean(0).tolist()):
                rows.append(
                    {
                        "method": name,
                        "direction": direction,
                        "share": step / steps,
                        "probability": value,
                        "area": area.value,
                        "area_low": area.low,
                        "area_high": area.high,
                        "images": len(own),
                    }
                )
    return rows
