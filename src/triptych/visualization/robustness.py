"""Predictions under PatchDrop and shuffling (Naseer et al., arXiv 2105.10497, on a probe set).

Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from triptych.visualization.capture import evaluating
from triptych.visualization.evidence import OCCLUDED_SHARES, Evidence
from triptych.visualization.intervals import mean_over_images, paired_over_images
from triptych.visualization.perturbations import SHUFFLE_GRIDS, Occlusion
from triptych.visualization.probe_set import ProbeSet

DROP_SHARES = (0.25, 0.5, 0.75, 0.9)
BATCH = 64
NONE = "none"
# What was done to the images: its kind and amount.
Disturbance = tuple[str, float]


def predictions(model: nn.Module, probe: ProbeSet) -> Tensor:
    """(B,) predicted classes."""
    device = next(model.parameters()).device
    with evaluating(model):
        parts = [model(part.to(device)).argmax(1).cpu() for part in probe.images().split(BATCH)]
    return torch.cat(parts)


def known_predictions(evidence: Evidence) -> dict[Disturbance, Tensor]:
    """(B,) predicted classes of the passes that the findings were read off."""
    readings = {(NONE, 0.0): evidence.plain}
    readings |= {("shuffle", float(side)): one for side, one in evidence.shuffled.items()}
    readings |= {
        (f"drop {kind}", OCCLUDED_SHARES[kind]): one for kind, one in evidence.occluded.items()
    }
    return {key: torch.from_numpy(one.logits).argmax(1) for key, one in readings.items()}


def disturbed(probe: ProbeSet, *, seed: int = 0) -> Iterator[tuple[str, float, ProbeSet]]:
    """(kind, amount, images): cells dropped at rising shares, then shuffled on finer grids."""
    masked = not probe.estimated and bool(probe.objects.any())
    kinds = list(Occlusion) if masked else [Occlusion.random]
    for kind in kinds:
        for share in DROP_SHARES:
            yield f"drop {kind}", share, probe.occluded(kind, share, seed=seed)
    for rows, columns in SHUFFLE_GRIDS[1:]:
        if rows == columns and not any(edge % rows for edge in probe.size):
            yield "shuffle", rows, probe.shuffled(rows, seed=seed)


def robustness_rows(
    model: nn.Module, probe: ProbeSet, known: Mapping[Disturbance, Tensor] | None = None
) -> list[dict[str, object]]:
    """One row per kind and amount: accuracy, or agreement with the undisturbed prediction.

    Accuracy where images have classes, with the paired difference to the undisturbed images.
    Shares are those of the eligible cells: of all, of object cells, of the others.

    Args:
        known: predictions that need not be made again, as :func:`known_predictions` gives them.
    """
    known = known or {}
    before = known[NONE, 0.0] if (NONE, 0.0) in known else predictions(model, probe)
    labels = before if probe.labels is None else probe.labels
    what = "agreement" if probe.labels is None else "accuracy"
    right = _hits(before, labels)
    rows = [_row(NONE, 0.0, what, right, right)]
    for kind, amount, changed in disturbed(probe):
        key = (kind, float(amount))
        predicted = known[key] if key in known else predictions(model, changed)
        rows.append(_row(kind, amount, what, _hits(predicted, labels), right))
    return rows


def _hits(predicted: Tensor, labels: Tensor) -> np.ndarray:
    return (predicted == labels).double().numpy()


def _row(
    kind: str, amount: float, what: str, hits: np.ndarray, before: np.ndarray
) -> dict[str, object]:
    found, change = mean_over_images(hits), paired_over_images(hits, before)
    return {
        "disturbance": kind,
        "amount": amount,
        "number": what,
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "images": found.count,
        "difference": change.value,
        "difference_low": change.low,
        "difference_high": change.high,
        "verdict": "" if kind == NONE else change.verdict,
    }
