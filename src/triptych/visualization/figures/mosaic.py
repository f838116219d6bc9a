"""Many small images on one sheet, drawn as one set of axes, which is quick.

Shapes: (h, w, 3) an image with values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from triptych.visualization.style import RELEVANCE_ALPHA, RELEVANCE_MAP, new_figure, styled

_INCHES = 1.15
_GAP = 0.08
_TEXT = 0.17
_LABEL = 1.25
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Panel:
    """One image with a line below it, and a box (top, left, height, width, of 1) drawn on it."""

    image: np.ndarray
    below: str = ""
    box: Box | None = None


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) of (h, w, 1) or (h, w, 3)."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def heat_over(image: np.ndarray, heat: np.ndarray, most: float) -> np.ndarray:
    """A map in [0, ``most``] in the colours of relevance over a faint ``image`` (h, w, C)."""
    rows, cols = image.shape[:2]
    down = np.arange(rows) * heat.shape[0] // rows
    across = np.arange(cols) * heat.shape[1] // cols
    colours = matplotlib.colormaps[RELEVANCE_MAP](np.clip(heat / max(most, 1e-12), 0, 1))[..., :3]
    # Half the contrast: black and white pixels must not drown the colours over them.
    faint = as_rgb(0.25 + 0.5 * image.mean(-1, keepdims=True))
    return RELEVANCE_ALPHA * colours[down][:, across] + (1 - RELEVANCE_ALPHA) * faint


@styled
def mosaic_figure(
    rows: Sequence[Sequence[Panel | None]],
    *,
    columns: Sequence[str],
    labels: Sequence[str],
    title: str,
    heat: str = "",
) -> Figure:
    """Rows of panels under column headings, a label before each row.

    Args:
        heat: label of a colour bar of relevance from 0 to a panel's maximum; none without it.
    """
    first = next(panel for row in rows for panel in row if panel is not None)
    tall = _INCHES * first.image.shape[0] / first.image.shape[1]
    pitch = (_INCHES + _GAP, tall + _GAP + _TEXT)
    width = _LABEL + pitch[0] * len(columns) + (0.75 if heat else 0.05)
    head = 0.62
    figure = new_figure(width, head + pitch[1] * len(rows))
    figure.set_layout_engine("none")
    # The axes' data are inches from the top left corner of the sheet.
    height = float(figure.get_figheight())
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for column, name in enumerate(columns):
        centre = _LABEL + column * pitch[0] + _INCHES / 2
        axes.text(centre, head - 0.06, name, ha="center", va="bottom", fontsize=8)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = head + number * pitch[1]
        axes.text(_LABEL - 0.08, top + tall / 2, label, ha="right", va="center", fontsize=8)
        for column, panel in enumerate(row):
            if panel is not None:
                _draw(axes, panel, (_LABEL + column * pitch[0], top, _INCHES, tall))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    axes.text(width / 2, 0.08, title, ha="center", va="top", fontsize=11)
    if heat:
        _heat_bar(figure, heat, width, height, head)
    return figure


def _draw(axes: Axes, panel: Panel, place: Box) -> None:
    left, top, width, tall = place
    image = np.clip(as_rgb(panel.image), 0, 1)
    extent = (left, left + width, top + tall, top)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto")
    if panel.box is not None:
        down, across, high, wide = panel.box
        corner = (left + across * width, top + down * tall)
        for colour, line in (("black", 2.2), ("#F0E442", 1.2)):
            axes.add_patch(
                Rectangle(
                    corner, wide * width, high * tall, fill=False, edgecolor=colour, linewidth=line
                )
            )
    if panel.below:
        axes.text(left + width / 2, top + tall + 0.02, panel.below, ha="center", va="top",
                  fontsize=7)  # fmt: skip


def _heat_bar(figure: Figure, label: str, width: float, height: float, head: float) -> None:
    span = min(2.4, height - head - 0.2)
    bar_axes = figure.add_axes(
        ((width - 0.66) / width, 1 - (head + span) / height, 0.11 / width, span / height)
    )
    bar_axes.set_facecolor("0.5")
    shade = ScalarMappable(Normalize(0, 1), RELEVANCE_MAP)
    bar = figure.colorbar(shade, cax=bar_axes, ticks=[0, 1], alpha=RELEVANCE_ALPHA)
    bar.ax.set_yticklabels(["0", "max"])
    bar.set_label(label, fontsize=7, labelpad=-8)
