"""Picture of what speaks for the predicted class: rollout, gradient-weighted relevance, Grad-CAM.

Shapes: B images.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from triptych.visualization.attention_gradients import capture_gradients
from triptych.visualization.display import to_pixels
from triptych.visualization.figures.attention import relative_relevance
from triptych.visualization.figures.mosaic import Panel, heat_over, mosaic_figure
from triptych.visualization.grad_cam import token_grad_cam
from triptych.visualization.picture import Picture
from triptych.visualization.relevance import class_relevance
from triptych.visualization.rollout import image_relevance

_SHOWN_IMAGES = 6
_CAPTION = (
    "Where attention rollout looks (whatever the class), and what speaks for the class named "
    "before each row by gradients: gradient rollout, the generic rule of Chefer et al., Grad-CAM "
    "on tokens of the last block. Each map from 0 to its own maximum, printed below in multiples "
    "of an even share; a map that is 0 everywhere is dark."
)


def relevance_gallery(
    model: nn.Module, images: Tensor, pixels: Tensor, target: Tensor | None = None
) -> Picture:
    """``class_relevance``: maps for one class of each image by several methods, on one scale rule.

    One forward and backward pass for the gradients of attention and one for Grad-CAM.

    Args:
        images: (B, C, Y, X) as the model takes them; the first six are shown.
        pixels: the same in [0, 1].
        target: (B,) classes; by default the predicted ones.

    Raises:
        ValueError: as `capture_gradients`.
    """
    images, pixels = images[:_SHOWN_IMAGES], pixels[:_SHOWN_IMAGES]
    target = None if target is None else target[:_SHOWN_IMAGES]
    graded = capture_gradients(model, images, target)
    maps = {
        "rollout": image_relevance(graded.captured),
        "gradient rollout": class_relevance(graded, rule="gradient_rollout"),
        "generic rule": class_relevance(graded, rule="generic"),
        "Grad-CAM": token_grad_cam(model, images, graded.target),
    }
    shares = {name: _in_even_shares(one).cpu() for name, one in maps.items()}
    classes = graded.target.tolist()
    return Picture(
        name="class_relevance",
        title="Relevance for the predicted class",
        caption=_CAPTION,
        figure=mosaic_figure(
            [_panels(image, index, shares) for index, image in enumerate(to_pixels(pixels))],
            columns=["input", *shares],
            labels=[f"image {index}\nclass {label}" for index, label in enumerate(classes)],
            title="Relevance for the predicted class",
            heat="relevance of a panel",
        ),
        rows=_rows(shares, classes),
    )


def _panels(image: np.ndarray, index: int, shares: dict[str, Tensor]) -> list[Panel | None]:
    """The image and each of its maps over it."""
    line: list[Panel | None] = [Panel(image)]
    for share in shares.values():
        heat, most = share[index].numpy(), float(share[index].max())
        line.append(Panel(heat_over(image, heat, most), f"max {most:.1f}"))
    return line


def _rows(shares: dict[str, Tensor], classes: list[int]) -> list[dict[str, object]]:
    return [
        {
            "image": index,
            "class": classes[index],
            "method": name,
            "row": place // share.shape[2],
            "column": place % share.shape[2],
            "times_even_share": value,
        }
        for name, share in shares.items()
        for index in range(len(share))
        for place, value in enumerate(share[index].flatten().tolist())
    ]


def _in_even_shares(maps: Tensor) -> Tensor:
    """Maps (B, rows, cols) in multiples of an even share; one without any relevance stays 0."""
    empty = maps.sum((1, 2), keepdim=True) <= 0
    return relative_relevance(maps.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
