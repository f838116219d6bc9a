"""Grouping measures layer by layer with intervals over images, under every condition.

Shapes: B images, L blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from triptych.visualization.evidence import OCCLUDED_SHARES, Evidence
from triptych.visualization.grouping import MEASURES
from triptych.visualization.intervals import mean_over_images, paired_over_images
from triptych.visualization.perturbations import Occlusion
from triptych.visualization.readings import Readings

WHOLE, RANDOM_WEIGHTS, PERMUTED = "whole", "random weights", "permuted labels"
_KINDS = {
    Occlusion.random: "random cells",
    Occlusion.salient: "object cells",
    Occlusion.non_salient: "background cells",
}


@dataclass(frozen=True)
class GroupingCurve:
    """One condition. ``control``: not the model on its images, but what chance would give."""

    condition: str
    readings: Readings
    control: bool = False


def grouping_curves(evidence: Evidence, untrained: Evidence | None = None) -> list[GroupingCurve]:
    """Whole, shuffled and occluded images, then the controls.

    Args:
        untrained: of the same model at its initial weights, on the same images or the first ones.
    """
    curves = [GroupingCurve(WHOLE, evidence.plain)]
    curves += [
        GroupingCurve(f"shuffled {side}x{side}", readings)
        for side, readings in evidence.shuffled.items()
    ]
    curves += [
        GroupingCurve(f"{OCCLUDED_SHARES[kind]:.0%} of {_KINDS[kind]} dropped", readings)
        for kind, readings in evidence.occluded.items()
    ]
    curves.append(GroupingCurve(PERMUTED, evidence.permuted, control=True))
    if untrained is not None and evidence.probe.has_groups:
        curves.append(GroupingCurve(RANDOM_WEIGHTS, untrained.plain, control=True))
    return curves


def measures_of(readings: Readings) -> Mapping[str, np.ndarray]:
    """The measures of clusters and the purity of neighbours, each (B, L)."""
    return {name: readings.grouping[name] for name in MEASURES} | {
        "neighbour_purity": readings.neighbours
    }


def grouping_rows(curves: list[GroupingCurve]) -> list[dict[str, object]]:
    """One row per condition, block and measure that an image has: mean, interval, difference.

    ``difference``: paired over images with the whole ones, with its interval and verdict.
    """
    whole = measures_of(curves[0].readings)
    rows: list[dict[str, object]] = []
    for curve in curves:
        for measure, values_BL in measures_of(curve.readings).items():
            for index, layer in enumerate(curve.readings.layers):
                found = mean_over_images(values_BL[:, index])
                if not found.count:
                    continue
                same = whole[measure][: len(values_BL), index]
                change = paired_over_images(values_BL[:, index], same)
                rows.append(
                    {
                        "condition": curve.condition,
                        "control": curve.control,
                        "block": index + 1,
                        "module": layer.name,
                        "stage": layer.stage + 1,
                        "token_pixels": layer.stride[0],
                        "measure": measure,
                        "mean": found.value,
                        "ci_low": found.low,
                        "ci_high": found.high,
                        "images": found.count,
                        "difference": change.value,
                        "difference_low": change.low,
                        "difference_high": change.high,
                        "verdict": "" if curve is curves[0] else change.verdict,
                    }
                )
    return rows
