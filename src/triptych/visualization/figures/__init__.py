"""Figures from numbers; each takes arrays or tables and returns a matplotlib Figure."""

from triptych.visualization.figures.attention import distance_figure, rollout_figure
from triptych.visualization.figures.magnitude import magnitude_figure, variation_figure
from triptych.visualization.figures.reconstruction import reconstruction_figure

__all__ = [
    "distance_figure",
    "magnitude_figure",
    "reconstruction_figure",
    "rollout_figure",
    "variation_figure",
]
