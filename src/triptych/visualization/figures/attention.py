"""Where models look: rollout overlays and mean attention distances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from torch import Tensor

from triptych.visualization.display import show_pixels, to_pixels
from triptych.visualization.style import (
    NEUTRAL,
    RELEVANCE_ALPHA,
    RELEVANCE_MAP,
    Colour,
    bare_image,
    faint_grid,
    head_colours,
    new_figure,
    styled,
)

_UNITS = {"steps": "patch steps", "pixels": "pixels"}
_PER_ROW = 4
_LISTED_HEADS = 12
# Heads of one block stand side by side over this much of the distance between blocks.
_SPREAD = 0.6


def relative_relevance(relevance: Tensor) -> Tensor:
    """Relevance (B, rows, cols) in multiples of an even share: 1 everywhere if all count alike."""
    total = relevance.sum((1, 2), keepdim=True)
    return relevance * (relevance[0].numel() / total)


def relevance_rows(relevance: Tensor) -> list[dict[str, object]]:
    """One row per image and grid token: raw relevance and multiples of an even share."""
    relevance = relevance.detach().cpu()
    relative = relative_relevance(relevance)
    batch, rows, cols = relevance.shape
    return [
        {
            "image": image,
            "row": row,
            "column": col,
            "relevance": relevance[image, row, col].item(),
            "times_even_share": relative[image, row, col].item(),
        }
        for image in range(batch)
        for row in range(rows)
        for col in range(cols)
    ]


@styled
def rollout_figure(
    images: Tensor,
    relevance: Tensor,
    *,
    window: tuple[int, int] | None = None,
    shift: tuple[int, int] | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Each image above its relevance, all on one colour scale in multiples of an even share.

    Args:
        images: (B, C, Y, X), pixels in [0, 1].
        relevance: (B, rows, cols), as from `image_relevance`.
        window, shift: (height, width) in pixels of attention windows and of their shift, drawn as
            solid and dotted lines: a map that follows them shows the windows, not the image.
        limits: ends of the colour scale; those of the data where not given.
    """
    pixels = to_pixels(images)
    shares = relative_relevance(relevance.detach().float()).cpu().numpy()
    limits = limits or (float(shares.min()), float(shares.max()))
    across, down = min(len(pixels), _PER_ROW), -(-len(pixels) // _PER_ROW)
    tall = 3.3 * pixels.shape[1] / pixels.shape[2] + 0.25
    figure = new_figure(1.7 * across + 1.3, tall * down + 0.5)
    grid = figure.subplots(2 * down, across, squeeze=False)
    for axes in grid.flat:
        bare_image(axes)
    for index in range(len(pixels)):
        top, column = 2 * (index // across), index % across
        pair = (grid[top][column], grid[top + 1][column])
        shown = _image_over_map(pair, pixels[index], shares[index], limits)
        pair[0].set_title(f"image {index}")
        _window_lines(pair[1], pixels[index].shape[:2], window, shift)
    bar = figure.colorbar(shown, ax=grid.ravel().tolist(), fraction=0.05, aspect=35)
    # The scale as it looks over a mid-grey pixel.
    bar.ax.set_facecolor("0.5")
    bar.set_label("relevance (multiples of an even share)")
    if title:
        figure.suptitle(title)
    return figure


def _image_over_map(
    pair: tuple[Axes, Axes], pixels: np.ndarray, share: np.ndarray, limits: tuple[float, float]
) -> AxesImage:
    upper, lower = pair
    show_pixels(upper, pixels)
    height, width = pixels.shape[:2]
    # Half the contrast: black and white pixels must not drown the colours over them.
    show_pixels(lower, 0.25 + 0.5 * pixels.mean(-1, keepdims=True))
    return lower.imshow(
        share,
        cmap=RELEVANCE_MAP,
        vmin=limits[0],
        vmax=limits[1],
        alpha=RELEVANCE_ALPHA,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def _window_lines(
    axes: Axes,
    size: tuple[int, int],
    window: tuple[int, int] | None,
    shift: tuple[int, int] | None,
) -> None:
    if window is None:
        return
    starts = [("-", (0, 0))]
    if shift is not None and any(shift):
        starts.append((":", shift))
    for style, (top, left) in starts:
        for at in range(top or window[0], size[0], window[0]):
            axes.axhline(at - 0.5, color="white", linestyle=style, linewidth=0.7, alpha=0.8)
        for at in range(left or window[1], size[1], window[1]):
            axes.axvline(at - 0.5, color="white", linestyle=style, linewidth=0.7, alpha=0.8)


@styled
def distance_figure(
    panels: Mapping[str, Sequence[Mapping[str, object]]],
    *,
    unit: str = "steps",
    renormalised: bool = False,
    title: str = "",
) -> Figure:
    """Scatter of mean attention distance by block, a colour for each head, a panel for each run.

    Args:
        panels: title of a panel to its rows, as from `distance_rows`.
        unit: "steps" of the block's own grid, or "pixels", which stages of a hierarchy share.
        renormalised: prefix tokens' mass shared out over the grid instead of left out.
        title: above the whole figure.

    Raises:
        ValueError: another unit, or no panel.
    """
    if unit not in _UNITS:
        raise ValueError(f"unit {unit!r} is not known; choose one of {', '.join(_UNITS)}")
    if not panels:
        raise ValueError("no panel to draw; give at least one")
    column = f"distance_renormalised_{unit}" if renormalised else f"distance_{unit}"
    every = [row for rows in panels.values() for row in rows]
    colours = head_colours(1 + max(_integer(row["head"]) for row in every))
    blocks = max(_integer(row["layer"]) for row in every)
    figure = new_figure(max(3.6, 0.42 * blocks + 0.9) * len(panels) + 1.5, 3.7)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (name, rows) in zip(grid, panels.items(), strict=True):
        _distance_panel(axes, rows, column, f"uniform_{unit}", colours)
        axes.set_title(name)
    grid[0].set_ylabel(f"mean attention distance ({_UNITS[unit]})")
    highest = max(_number(row[key]) for row in every for key in (column, f"uniform_{unit}"))
    grid[0].set_ylim(0, 1.08 * highest)
    _name_heads(figure, grid.tolist(), colours)
    if title:
        figure.suptitle(title)
    return figure


def _distance_panel(
    axes: Axes,
    rows: Sequence[Mapping[str, object]],
    column: str,
    uniform_column: str,
    colours: Sequence[Colour],
) -> None:
    uniform = {_integer(row["layer"]): _number(row[uniform_column]) for row in rows}
    heads_of = Counter(_integer(row["layer"]) for row in rows)
    for row in rows:
        layer, head = _integer(row["layer"]), _integer(row["head"])
        axes.scatter(
            layer + _SPREAD * ((head + 0.5) / heads_of[layer] - 0.5),
            _number(row[column]),
            s=30 if len(colours) <= 4 else 14,
            color=colours[head],
            edgecolors="white",
            linewidths=0.4,
            zorder=3,
        )
    for layer, value in uniform.items():
        axes.hlines(
            value,
            layer - 0.42,
            layer + 0.42,
            color=NEUTRAL,
            linestyles="--",
            linewidth=1.0,
            zorder=4,
        )
    axes.set_xticks(sorted(uniform))
    axes.set_xlim(min(uniform) - 0.6, max(uniform) + 0.6)
    axes.set_xlabel("block")
    faint_grid(axes)


def _name_heads(figure: Figure, grid: list[Axes], colours: Sequence[Colour]) -> None:
    """A legend of heads, or a colour bar where they are too many to list."""
    heads = len(colours)
    dashes = Line2D([], [], color=NEUTRAL, linestyle="--", linewidth=1.0, label="uniform attention")
    if heads <= _LISTED_HEADS:
        dots = [
            Line2D([], [], marker="o", linestyle="", color=colour, label=f"head {head}")
            for head, colour in enumerate(colours)
        ]
        figure.legend(handles=[*dots, dashes], loc="outside right center", frameon=False)
        return
    bands = BoundaryNorm(np.arange(heads + 1) - 0.5, heads)
    shown = ScalarMappable(bands, ListedColormap(list(colours)))
    ticks = range(0, heads, -(-heads // _LISTED_HEADS))
    figure.colorbar(shown, ax=grid, label="head", ticks=list(ticks), fraction=0.05)
    figure.legend(handles=[dashes], loc="outside lower right", frameon=False)


def _integer(value: object) -> int:
    return int(str(value))


def _number(value: object) -> float:
    return float(str(value))
