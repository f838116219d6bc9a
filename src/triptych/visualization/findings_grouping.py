"""Checks about clusters of object tokens (statements F8 to F13).

Layers are compared on one token grid: that of the stage with most blocks in which the probe set
can be asked (of equals the last), as numbers of different strides say different things.

Shapes: B images, L blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triptych.visualization.evidence import Evidence
from triptych.visualization.findings import LEAST_IMAGES, Check, UnansweredError
from triptych.visualization.readings import Readings

ALIKE = 0.5
LEAST_DEPTH = 8
_RISES = {
    "purity": "0.558 to 0.670",
    "silhouette": "0.046 to 0.265",
    "in_cluster_cosine": "0.316 to 0.795",
    "in_object_cosine": "0.300 to 0.755",
}


def rises_with_depth(evidence: Evidence) -> tuple[Check, ...]:
    """F8."""
    first, last = first_and_last(evidence.plain)
    where = _between(evidence.plain, first, last)
    return tuple(
        Check(
            f"{name}_rise",
            f"{_words(name)}, {where}",
            _change(evidence.plain.grouping[name], first, last),
            0.0,
            reference=reference,
        )
        for name, reference in _RISES.items()
    )


def clusters_closer_than_objects(evidence: Evidence) -> tuple[Check, ...]:
    """F9."""
    gap_BL = _gap(evidence.plain.grouping)
    asked = [layer for layer in range(gap_BL.shape[1]) if _count(gap_BL[:, layer])]
    if not asked:
        raise UnansweredError(_no_objects(evidence))
    smallest = np.array([np.nanmean(gap_BL[:, layer]) for layer in asked])
    return (
        Check(
            "gap",
            "cosine similarity in clusters less in objects, mean over layers",
            _row_mean(gap_BL),
            0.0,
            reference="0.02 to 0.06",
        ),
        Check(
            "least_layer",
            "the same in the layer where it is least (mean over images)",
            smallest,
            0.0,
            reference="above 0 in 12 of 12 layers",
            every=True,
        ),
    )


def early_bump(evidence: Evidence) -> tuple[Check, ...]:
    """F10: at a quarter, at 5/12 (silhouette) or 6/12 (labels), and at the whole depth."""
    first, last = first_and_last(evidence.plain)
    depth = last - first + 1
    if depth < LEAST_DEPTH:
        raise UnansweredError(f"{depth} blocks lie on one token grid; {LEAST_DEPTH} are needed")
    checks = []
    for name, low, peak_text, rise_text in (
        ("silhouette", 5, "0.121 to 0.112", "0.112 to 0.265"),
        ("unique_label_rate", 6, "0.816 to 0.789", "0.789 to 0.840"),
    ):
        values_BL = evidence.plain.grouping[name]
        peak, dip = (first + round(part * depth / 12) - 1 for part in (3, low))
        for kind, start, end, text, up in (
            ("dip", peak, dip, peak_text, False),
            ("rise", dip, last, rise_text, True),
        ):
            where = _between(evidence.plain, start, end)
            checks.append(
                Check(
                    f"{name}_{kind}",
                    f"{_words(name)}, {where}",
                    _change(values_BL, start, end),
                    0.0,
                    above=up,
                    reference=text,
                )
            )
    return tuple(checks)


def shuffling_breaks_grouping(evidence: Evidence) -> tuple[Check, ...]:
    """F11."""
    first, last = first_and_last(evidence.plain)
    two, eight = _shuffled(evidence, 2), _shuffled(evidence, 8)
    silhouette = [one.grouping["silhouette"][:, last] for one in (evidence.plain, two, eight)]
    rise = [_change(one.grouping["purity"], first, last) for one in (evidence.plain, eight)]
    return (
        Check("mild", "silhouette at the last layer: whole less 2x2", silhouette[0] - silhouette[1],
              0.0, reference="0.265 and 0.231"),
        Check("strong", "silhouette at the last layer: 2x2 less 8x8", silhouette[1] - silhouette[2],
              0.0, reference="0.231 and 0.087"),
        Check("purity", "rise of purity: whole less 8x8", rise[0] - rise[1], 0.0,
              reference="0.112 and 0.026"),
    )  # fmt: skip


def alike_when_shuffled(evidence: Evidence) -> tuple[Check, ...]:
    """F12."""
    _, last = first_and_last(evidence.plain)
    seen = {
        "whole": (evidence.plain, "0.755"),
        "shuffled_2": (_shuffled(evidence, 2), "0.726"),
        "shuffled_8": (_shuffled(evidence, 8), "0.620"),
    }
    return tuple(
        Check(
            name,
            f"cosine similarity in objects at the last layer, {name.replace('_', ' ')}",
            readings.grouping["in_object_cosine"][:, last],
            ALIKE,
            reference=reference,
        )
        for name, (readings, reference) in seen.items()
    )


def neighbours_on_same_object(evidence: Evidence) -> tuple[Check, ...]:
    """F13."""
    first, last = first_and_last(evidence.plain)
    where = _between(evidence.plain, first, last)
    change = _change(evidence.plain.neighbours, first, last)
    words = f"share of five nearest tokens on the same object, {where}"
    return (Check("neighbours_rise", words, change, 0.0, reference="only shown by t-SNE"),)


def first_and_last(readings: Readings) -> tuple[int, int]:
    """First and last block of the stage in which layers are compared.

    Raises:
        UnansweredError: no stage has two blocks and enough images with two objects of three tokens.
    """
    purity_BL = readings.grouping["purity"]
    runs: dict[int, list[int]] = {}
    for index, layer in enumerate(readings.layers):
        runs.setdefault(layer.stage, []).append(index)
    asked = [run for run in runs.values() if _count(purity_BL[:, run[0]]) >= LEAST_IMAGES]
    if not asked:
        most = max(_count(purity_BL[:, index]) for index in range(purity_BL.shape[1]))
        raise UnansweredError(
            f"{most} images have two objects of three tokens each; {LEAST_IMAGES} are needed"
        )
    longest = max(asked, key=lambda run: (len(run), run[0]))
    if len(longest) < 2:
        raise UnansweredError("no two blocks lie on one token grid that objects can be seen on")
    return longest[0], longest[-1]


def _shuffled(evidence: Evidence, side: int) -> Readings:
    if side not in evidence.shuffled:
        raise UnansweredError(f"images of {evidence.probe.size} pixels cannot be cut {side}x{side}")
    return evidence.shuffled[side]


def _no_objects(evidence: Evidence) -> str:
    return f"none of {len(evidence.probe)} images has two objects of three tokens each"


def _gap(grouping: Mapping[str, np.ndarray]) -> np.ndarray:
    return grouping["in_cluster_cosine"] - grouping["in_object_cosine"]


def _change(values_BL: np.ndarray, first: int, last: int) -> np.ndarray:
    return values_BL[:, last] - values_BL[:, first]


def _row_mean(values_BL: np.ndarray) -> np.ndarray:
    """Mean over the finite values of each row; NaN for a row without any."""
    finite = np.isfinite(values_BL)
    count = finite.sum(1)
    total = np.where(finite, values_BL, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _count(values: np.ndarray) -> int:
    return int(np.isfinite(values).sum())


def _between(readings: Readings, first: int, last: int) -> str:
    return f"block {first + 1} to block {last + 1} ({readings.layers[first].stride[0]} px tokens)"


def _words(name: str) -> str:
    return {
        "purity": "purity",
        "silhouette": "silhouette",
        "in_cluster_cosine": "cosine similarity in clusters",
        "in_object_cosine": "cosine similarity in objects",
        "unique_label_rate": "unique label rate",
    }[name]
