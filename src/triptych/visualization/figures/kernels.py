"""DTN's position kernels as heat maps, a row for each layer and a column for each head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse
from matplotlib.patheffects import AbstractPathEffect, withStroke

from triptych.visualization.position_kernels import PositionKernels
from triptych.visualization.style import MAGNITUDE_MAP, new_figure, short_path, styled

_OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black")]
# With more heads than this a panel has no room for its numbers.
_NUMBERED_HEADS = 12
_LEAST_RADIUS = 2
# Room for the names of layers, the colour bar and the title, in inches.
_LEFT, _RIGHT, _TOP = 2.1, 1.0, 0.45


@styled
def kernels_figure(kernels: Mapping[str, PositionKernels], *, title: str = "") -> Figure:
    """Share of the tokens around one target, with the centre as a cross and one sigma around it.

    The colour scale, by square root so that wide kernels show, is one for all panels. A row shows
    as many tokens around the target (open circle) as its widest kernel needs; ticks count tokens
    from the target. Below a panel: centre (dy, dx) ± width. Layers on a sequence are curves of
    the share over the offset, with a band of one sigma.

    Args:
        kernels: module path of each layer to its kernels.
        title: above the whole figure.

    Raises:
        ValueError: no layers.
    """
    if not kernels:
        raise ValueError("no position kernels to draw; give at least one layer")
    columns = max(len(one.weights) for one in kernels.values())
    side = 1.25 if columns <= 6 else 0.95 if columns <= _NUMBERED_HEADS else 0.62
    numbered = columns <= _NUMBERED_HEADS
    figure, grid = _sheet(len(kernels), columns, side, 0.42 if numbered else 0.16)
    scale = PowerNorm(0.5, 0, max(float(one.weights.max()) for one in kernels.values()))
    maps = []
    for row, (layer, one) in zip(grid, kernels.items(), strict=True):
        for head, axes in enumerate(row[: len(one.weights)]):
            maps.append(_panel(axes, one, head, scale, numbered=numbered))
        for axes in row[len(one.weights) :]:
            axes.remove()
        row[0].tick_params(left=True, labelleft=True)
        rows, across = one.weights.shape[1:]
        place = f"{short_path(layer)}\n{rows}x{across} tokens"
        row[0].set_ylabel(place, rotation=0, ha="right", va="center", fontsize=8)
    drawn = next((one for one in maps if one is not None), None)
    if drawn is not None:
        _scale_bar(figure, drawn)
    if title:
        figure.suptitle(title)
    return figure


def _sheet(rows: int, columns: int, side: float, below: float) -> tuple[Figure, np.ndarray]:
    """Panels of ``side`` inches with ``below`` inches under each.

    All sizes are known here; a layout engine would find the same ones in half a second.
    """
    width, height = max(side * columns, 3.0) + _LEFT + _RIGHT, (side + below) * rows + _TOP + 0.25
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / width,
            "right": 1 - _RIGHT / width,
            "top": 1 - _TOP / height,
            "bottom": (below + 0.25) / height,
            "wspace": 0.12,
            "hspace": below / side,
        },
    )
    return figure, grid


def _scale_bar(figure: Figure, drawn: AxesImage) -> None:
    width, height = figure.get_size_inches()
    tall = min(0.8 * height, 4.5)
    place = (1 - (_RIGHT - 0.15) / width, 0.5 - tall / 2 / height, 0.14 / width, tall / height)
    bar = figure.colorbar(drawn, cax=figure.add_axes(place))
    bar.set_label("share of a token (square-root scale)")


def _panel(
    axes: Axes, one: PositionKernels, head: int, scale: PowerNorm, *, numbered: bool
) -> AxesImage | None:
    """One head; None where it is a sequence, drawn as a curve."""
    radius = _radius(one)
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False, labelsize=7)
    if one.weights.shape[1] == 1:
        shown = None
        _curve(axes, one, head, radius)
    else:
        shown = _map(axes, one, head, scale, radius)
    if numbered:
        (dy, dx), width = one.centre[head].tolist(), float(one.width[head])
        where = f"{dx:+.1f}" if shown is None else f"{dy:+.1f}, {dx:+.1f}"
        axes.set_xlabel(f"head {head}: {where}\n± {width:.1f}", fontsize=7, labelpad=2)
    return shown


def _radius(one: PositionKernels) -> int:
    """Tokens around the target that hold every head's centre and three sigma, within the grid."""
    reach = (one.centre.abs() + 3 * one.widths).max()
    return max(_LEAST_RADIUS, min(math.ceil(float(reach)), max(one.weights.shape[1:])))


def _map(axes: Axes, one: PositionKernels, head: int, scale: PowerNorm, radius: int) -> AxesImage:
    rows, columns = one.weights.shape[1:]
    top, left = one.target
    shown = axes.imshow(
        one.weights[head].numpy(),
        cmap=MAGNITUDE_MAP,
        norm=scale,
        extent=(-left - 0.5, columns - left - 0.5, rows - top - 0.5, -top - 0.5),
    )
    axes.set_xlim(max(-radius, -left) - 0.5, min(radius, columns - 1 - left) + 0.5)
    axes.set_ylim(min(radius, rows - 1 - top) + 0.5, max(-radius, -top) - 0.5)
    dy, dx = one.centre[head].tolist()
    tall, wide = (2 * one.widths[head]).tolist()
    ring = Ellipse((dx, dy), wide, tall, fill=False, edgecolor="white", linewidth=1.1)
    ring.set_path_effects(_OUTLINE)
    axes.add_patch(ring)
    for x, y, marker, size in ((0.0, 0.0, "o", 4), (dx, dy, "+", 6)):
        axes.plot(x, y, marker, ms=size, mfc="none", color="white", mew=1.1, path_effects=_OUTLINE)
    _offset_ticks(axes, radius)
    return shown


def _curve(axes: Axes, one: PositionKernels, head: int, radius: int) -> None:
    offset_X = np.arange(one.weights.shape[2]) - one.target[1]
    near = np.abs(offset_X) <= radius
    axes.plot(offset_X[near], one.weights[head, 0].numpy()[near], color="#31688E", linewidth=1.2)
    centre, width = float(one.centre[head, 1]), float(one.widths[head, 1])
    axes.axvspan(centre - width, centre + width, color="#31688E", alpha=0.2, linewidth=0)
    axes.axvline(0, color="#444444", linestyle=":", linewidth=0.8)
    axes.set_ylim(0, 1.05 * float(one.weights.max()))
    axes.set_xticks([-radius, 0, radius])
    axes.tick_params(bottom=True, labelbottom=True)


def _offset_ticks(axes: Axes, radius: int) -> None:
    """The target and the outermost tokens that are seen."""
    for limits, set_ticks in (
        (axes.get_xlim(), axes.set_xticks),
        (axes.get_ylim(), axes.set_yticks),
    ):
        low, high = sorted(limits)
        ticks: Sequence[int] = sorted({math.ceil(low), 0, math.floor(high)})
        set_ticks(list(ticks))
