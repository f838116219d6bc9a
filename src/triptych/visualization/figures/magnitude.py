"""Token magnitudes around norms, and how much of their variation a norm leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from triptych.visualization.style import (
    MAGNITUDE_MAP,
    NEUTRAL,
    faint_grid,
    new_figure,
    norm_colour,
    norm_label,
    styled,
)
from triptych.visualization.token_magnitude import TokenMagnitude

_APART = 0.07


@styled
def magnitude_figure(
    magnitudes: Sequence[TokenMagnitude], *, image: int = 0, title: str = ""
) -> Figure:
    """Heads x tokens length maps of one image; a row for each norm, before and after side by side.

    Each pair shares one colour scale, from 0; the titles give the mean CV over the heads.

    Raises:
        ValueError: nothing to draw, or no such image.
    """
    if not magnitudes:
        raise ValueError("no norm to draw; give at least one")
    if not 0 <= image < len(magnitudes[0].before):
        raise ValueError(
            f"image {image} is not among the {len(magnitudes[0].before)} captured; "
            f"give 0 to {len(magnitudes[0].before) - 1}"
        )
    figure = new_figure(8.6, 1.75 * len(magnitudes) + 0.6)
    grid = figure.subplots(len(magnitudes), 2, squeeze=False)
    for row, one in zip(grid, magnitudes, strict=True):
        shown = _magnitude_pair(row, one, image)
        bar = figure.colorbar(shown, ax=list(row), fraction=0.04, aspect=12, pad=0.02)
        bar.set_label("L2 norm")
    for axes in grid[-1]:
        axes.set_xlabel("token (row by row)")
    if title:
        figure.suptitle(title)
    return figure


def _magnitude_pair(row: Sequence[Axes], one: TokenMagnitude, image: int) -> AxesImage:
    sides = (
        ("before", one.before[image], one.cv_before[image]),
        ("after", one.after[image], one.cv_after[image]),
    )
    top = max(float(values_HN.max()) for _, values_HN, _ in sides)
    for axes, (side, values_HN, cv_H) in zip(row, sides, strict=True):
        shown = axes.imshow(
            values_HN.cpu().numpy(), cmap=MAGNITUDE_MAP, vmin=0, vmax=top, aspect="auto"
        )
        axes.set_title(
            f"block {one.layer} {one.site}, {side} {norm_label(one.kind)}: "
            f"CV {cv_H.mean().item():.3f}"
        )
        axes.set_yticks(_few_ticks(len(values_HN)))
    row[0].set_ylabel("head")
    return shown


@styled
def variation_figure(magnitudes: Sequence[TokenMagnitude], *, title: str = "") -> Figure:
    """CV of token lengths by block before and after each norm, heads as dots, their mean a line.

    One panel for each norm site; averaged over the images.

    Raises:
        ValueError: nothing to draw.
    """
    if not magnitudes:
        raise ValueError("no norm to draw; give at least one")
    sites = list(dict.fromkeys(one.site for one in magnitudes))
    figure = new_figure(3.6 * len(sites) + 1.2, 3.4)
    grid = figure.subplots(1, len(sites), squeeze=False, sharey=True)[0]
    handles: dict[str, Line2D] = {}
    for axes, site in zip(grid, sites, strict=True):
        chosen = [one for one in magnitudes if one.site == site]
        handles["before"] = _variation_line(axes, chosen, "before", NEUTRAL)
        # Some blocks may keep another norm: a line of its own for each kind.
        for kind in dict.fromkeys(one.kind for one in chosen):
            same = [one for one in chosen if one.kind == kind]
            line = _variation_line(axes, same, "after", norm_colour(kind))
            handles[f"after {norm_label(kind)}"] = line
        axes.set_title(site)
        axes.set_xlabel("block")
        axes.set_xticks([one.layer for one in chosen])
        faint_grid(axes)
    grid[0].set_ylabel("CV of token L2 norms")
    grid[0].set_ylim(bottom=0)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _variation_line(
    axes: Axes, magnitudes: Sequence[TokenMagnitude], side: str, colour: str
) -> Line2D:
    """Heads as dots, a little to the side so that before and after do not hide each other."""
    before = side == "before"
    means = []
    for one in magnitudes:
        cv_H = (one.cv_before if before else one.cv_after).mean(0)
        at = np.full(len(cv_H), one.layer - _APART if before else one.layer + _APART)
        axes.scatter(at, cv_H.cpu().numpy(), s=12, color=colour, alpha=0.5, linewidths=0)
        means.append(cv_H.mean().item())
    layers = [one.layer for one in magnitudes]
    style = "--" if before else "-"
    (line,) = axes.plot(layers, means, style, marker="o", markersize=4, color=colour)
    return line


def _few_ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // 6))))
