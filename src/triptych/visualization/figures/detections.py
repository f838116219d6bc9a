"""Boxes and masks on images: the truth above, what a detector found below.

Shapes: (h, w, 3) an image with values in [0, 1], H and W its height and width, D objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from triptych.visualization.style import bare_image, new_figure, styled

_INCHES = 1.9
_CLASS_MAP = "tab10"
_MASK_ALPHA = 0.45


@dataclass(frozen=True)
class Outlined:
    """One object: its class (0 … K − 1), box (left, top, right, bottom) in pixels, and line.

    ``mask`` is bool (H, W), where there is one.
    """

    kind: int
    box: tuple[float, float, float, float]
    text: str
    mask: np.ndarray | None = None


@styled
def detections_figure(
    images: Sequence[np.ndarray],
    truth: Sequence[Sequence[Outlined]],
    found: Sequence[Sequence[Outlined]],
    names: Sequence[str],
) -> Figure:
    """Two rows of images; one colour for each class, for every tenth the same."""
    figure = new_figure(0.4 + _INCHES * len(images), 2 * _INCHES + 0.5)
    grid = figure.subplots(2, len(images), squeeze=False)
    for row, (label, objects) in enumerate((("truth", truth), ("predicted", found))):
        for column, image in enumerate(images):
            axes = grid[row][column]
            bare_image(axes, names[column] if row == 0 else "")
            axes.imshow(_with_masks(image, objects[column]), vmin=0, vmax=1)
            for one in objects[column]:
                _outline(axes, one)
        grid[row][0].set_ylabel(label)
    return figure


def class_colour(kind: int) -> tuple[float, float, float]:
    red, green, blue, _ = matplotlib.colormaps[_CLASS_MAP](kind % 10)
    return red, green, blue


def _with_masks(image: np.ndarray, objects: Sequence[Outlined]) -> np.ndarray:
    shown = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image.copy()
    for one in objects:
        if one.mask is not None:
            colour = np.asarray(class_colour(one.kind))
            shown[one.mask] = (1 - _MASK_ALPHA) * shown[one.mask] + _MASK_ALPHA * colour
    return shown


def _outline(axes: Axes, one: Outlined) -> None:
    left, top, right, bottom = one.box
    colour = class_colour(one.kind)
    # Pixel 0 is drawn from −0.5 to 0.5.
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(
        Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.3)
    )
    axes.text(
        *corner,
        one.text,
        fontsize=6,
        color="white",
        va="bottom",
        ha="left",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
    )
