"""Scatter plots of tokens in the plane beside their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.nn import functional as F

from triptych.palette import OTHER_COLOURS
from triptych.visualization.display import show_pixels
from triptych.visualization.figures.mosaic import as_rgb
from triptych.visualization.style import bare_image, new_figure, styled

if TYPE_CHECKING:
    from triptych.visualization.embedding import Embedding

BACKGROUND = "#B0B0B0"


@styled
def embedding_figure(
    embeddings: Sequence[Embedding],
    pixels: Mapping[int, np.ndarray],
    names: Sequence[Sequence[str]],
    *,
    title: str = "",
) -> Figure:
    """A row for each image: the image, then its tokens after each block.

    Tokens of an image without objects have the mean colour of their pixels.

    Args:
        pixels: image number → (Y, X, C) in [0, 1].
        names: class names of the objects of every image of the set.
    """
    images = list(dict.fromkeys(one.image for one in embeddings))
    across = 1 + max(sum(one.image == image for one in embeddings) for image in images)
    figure = new_figure(2.6 * across, 2.7 * len(images) + 0.4)
    panels = figure.subplots(len(images), across, squeeze=False)
    for axes in panels.flat:
        bare_image(axes)
    for row, image in zip(panels, images, strict=True):
        show_pixels(row[0], pixels[image])
        bare_image(row[0], f"image {image}")
        own = [one for one in embeddings if one.image == image]
        for axes, one in zip(row[1:], own, strict=False):
            _scatter(axes, one, names[image], pixels[image])
        if names[image]:
            row[1].legend(loc="best", frameon=True, framealpha=0.7, fontsize=7, borderpad=0.2)
    if title:
        figure.suptitle(title)
    return figure


def _scatter(axes: Axes, one: Embedding, names: Sequence[str], pixels: np.ndarray) -> None:
    bare_image(axes, f"block {one.level}")
    if not names:
        axes.scatter(one.points[:, 0], one.points[:, 1], s=18, color=_mean_colours(pixels, one),
                     edgecolor=BACKGROUND, linewidth=0.3)  # fmt: skip
        return
    beside = one.points[one.owners < 0]
    axes.scatter(beside[:, 0], beside[:, 1], marker="+", s=16, linewidth=0.7, color=BACKGROUND)
    for number, name in enumerate(names):
        own = one.points[one.owners == number]
        colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
        axes.scatter(own[:, 0], own[:, 1], s=18, color=colour, label=name, edgecolor="white",
                     linewidth=0.4)  # fmt: skip


def _mean_colours(pixels: np.ndarray, one: Embedding) -> np.ndarray:
    """(N, 3), the mean colour of the image region of each token."""
    image_CYX = torch.from_numpy(as_rgb(pixels).copy()).permute(2, 0, 1)
    cells = F.adaptive_avg_pool2d(image_CYX, one.grid)
    return cells.flatten(1).T.clamp(0, 1).numpy()
