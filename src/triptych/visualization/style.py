"""One look for every picture: palette, colour maps, type sizes, and figures without pyplot.

Figures are `matplotlib.figure.Figure` objects on the Agg canvas; rcParams hold only while a
figure is being drawn, so nothing here changes a caller's matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from triptych.palette import NORM_COLOURS

P = ParamSpec("P")
R = TypeVar("R")
Colour = tuple[float, float, float, float]

NEUTRAL = "#444444"
OTHER_NORM = "#56B4E9"
STAMP = "#D55E00"

RELEVANCE_MAP = "inferno"
RELEVANCE_ALPHA = 0.7
MAGNITUDE_MAP = "viridis"
ERROR_MAP = "magma"
HEAD_MAP = "turbo"

DPI = 150
_NORM_OF_CLASS = {"LayerNorm": "ln", "DynamicTokenNorm": "dtn"}
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "image.interpolation": "nearest",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under the house style and leave rcParams as they were."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that makes room for its own labels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare_image(axes: Axes, title: str = "") -> None:
    """An image panel: no ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title)


def faint_grid(axes: Axes) -> None:
    """Faint lines at the ticks of the y axis, behind everything."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.7)


def short_path(path: str, longest: int = 26) -> str:
    """A module path with as much of its end as a panel's title has room for."""
    return path if len(path) <= longest else f"…{path[1 - longest :]}"


def norm_label(kind: str) -> str:
    """Short label of a norm's class name: "LN", "DTN", or the name itself."""
    return _NORM_OF_CLASS[kind].upper() if kind in _NORM_OF_CLASS else kind


def norm_colour(kind: str) -> str:
    """Colour of a norm by class name; norms outside the comparison share one."""
    return NORM_COLOURS[_NORM_OF_CLASS[kind]] if kind in _NORM_OF_CLASS else OTHER_NORM


def head_colours(heads: int) -> list[Colour]:
    """One colour for each head, the same head always the same colour for a given number."""
    colours = matplotlib.colormaps[HEAD_MAP](np.linspace(0.06, 0.94, heads))
    return [tuple(colour) for colour in colours]
