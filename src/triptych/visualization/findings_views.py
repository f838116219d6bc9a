"""Checks about views: filters at level 0, and where tokens look (statements F1 to F7, F14)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from triptych.visualization.evidence import Evidence, FilterEvidence
from triptych.visualization.filter_scores import GOOD_AUROC
from triptych.visualization.findings import Check, UnansweredError
from triptych.visualization.perturbations import Occlusion
from triptych.visualization.readings import Readings

EXACT = 1e-6
# "Much more" and "much less" than other patches, in the words of the paper's figures.
CENTRED, AVOIDED = 2.0, 0.5
WIDE, ALIKE, SETTLED = 0.7, 0.85, 0.99


def locality(evidence: Evidence) -> tuple[Check, ...]:
    """F1."""
    leak = _level_0(evidence).leak
    words = "largest change of an untouched patch's level-0 response (share of the largest)"
    return (Check("leak", words, leak, EXACT, above=False, reference="exact", every=True),)


def semantic_filters(evidence: Evidence) -> tuple[Check, ...]:
    """F2: the filter is chosen on the other half of the images."""
    level_0 = _level_0(evidence)
    auroc = level_0.scores.auroc.double().numpy()
    if len(auroc) < 2:
        raise UnansweredError("a filter is chosen on other images, and there is one image alone")
    halves = np.arange(len(auroc)) % 2
    held_out = np.empty(len(auroc))
    for half in (0, 1):
        best = int(auroc[halves != half].mean(0).argmax())
        held_out[halves == half] = auroc[halves == half, best]
    return (
        Check("auroc", "AUROC of the best filter on held-out images", held_out, GOOD_AUROC),
        Check(
            "auroc_over_pixels",
            "the same less the AUROC of the contrast of raw patches",
            held_out - level_0.pixels_auroc,
            0.0,
        ),
    )


def no_filter_for_all(evidence: Evidence) -> tuple[Check, ...]:
    """F3."""
    good = _level_0(evidence).scores.good().double().numpy()
    if good.shape[1] < 2:
        raise UnansweredError("there is one filter alone")
    best = int(good.mean(0).argmax())
    return (
        Check(
            "best_filter_good",
            "share of images for which the most often good filter is good",
            good[:, best],
            1.0,
            above=False,
            reference="filter 714 good for two images, bad for a third",
        ),
        Check("some_filter_good", "share of images with a good filter", good.max(1), 0.5),
    )


def own_object_first(evidence: Evidence) -> tuple[Check, ...]:
    """F4: at a third of the depth."""
    plain = evidence.plain
    at = level_at(plain, 1 / 3)
    where = f"after block {at + 1}"
    own, beside = plain.rollout["own_object_ratio"], plain.rollout["background_ratio"]
    return (
        Check(
            "own_object",
            f"weight of a patch of the own object over another, object tokens {where}",
            own[:, at],
            CENTRED,
            reference="119 to 436 at layer 4 of 12, 8 to 11 at layer 8",
        ),
        Check(
            "background",
            f"weight of an object patch over another, background tokens {where}",
            beside[:, at],
            AVOIDED,
            above=False,
            reference="0.00 at layer 4, 0.07 at layer 8",
        ),
    )


def image_wide_at_last(evidence: Evidence) -> tuple[Check, ...]:
    """F5."""
    numbers = evidence.plain.rollout
    return (
        Check(
            "effective_share",
            "effective patches of a token over all patches, last block",
            numbers["effective_share"][:, -1],
            WIDE,
            reference="0.74 to 0.76 (145 to 149 of 196)",
        ),
        Check(
            "row_correlation",
            "mean correlation of two tokens' views, last block",
            numbers["row_correlation"][:, -1],
            ALIKE,
            reference="0.88 to 0.97",
        ),
    )


def class_token_settled(evidence: Evidence) -> tuple[Check, ...]:
    """F6."""
    plain = evidence.plain
    levels = [level_at(plain, part) for part in (1 / 3, 2 / 3, 1)]
    if not plain.reads_class_token[-1]:
        raise UnansweredError("the model has no class token that its head reads")
    if not plain.reads_class_token[levels[0]]:
        raise UnansweredError("the class token joins after a third of the depth")
    if len(set(levels)) < 3:
        raise UnansweredError(f"the model has {len(plain.layers)} blocks; 3 are needed")
    rows = plain.head_rows
    pairs = list(pairwise(levels))
    correlation = np.mean([_correlation(rows[:, a], rows[:, b]) for a, b in pairs], axis=0)
    return (
        Check(
            "class_row_correlation",
            "correlation of the class token's view between thirds of the depth",
            correlation,
            SETTLED,
            reference="0.997 to 0.999 between layers 4, 8 and 11",
        ),
    )


def drops_shift_views(evidence: Evidence) -> tuple[Check, ...]:
    """F7: at two thirds of the depth, on the same images."""
    if not evidence.occluded:
        raise UnansweredError("no image of the probe set has an object")
    at = level_at(evidence.plain, 2 / 3)
    ratio = {
        kind: readings.rollout["own_object_ratio"][:, at]
        for kind, readings in evidence.occluded.items()
    }
    where = f"own-object weight of object tokens after block {at + 1}"
    return (
        Check(
            "background_dropped",
            f"{where}: without background less random drop",
            ratio[Occlusion.non_salient] - ratio[Occlusion.random],
            0.0,
            reference="5.1 and 2.9",
        ),
        Check(
            "object_dropped",
            f"{where}: random drop less object drop",
            ratio[Occlusion.random] - ratio[Occlusion.salient],
            0.0,
            reference="2.9 and 2.0",
        ),
    )


def head_on_objects(evidence: Evidence) -> tuple[Check, ...]:
    """F14."""
    plain = evidence.plain
    reader = "the class token" if plain.reads_class_token[-1] else "the mean over output tokens"
    return (
        Check(
            "head_ratio",
            f"weight of an object patch over another in {reader}, last block",
            plain.rollout["head_ratio"][:, -1],
            1.0,
            reference="1.3",
        ),
    )


def level_at(readings: Readings, part: float) -> int:
    """Index of the block at a part of the depth: 1/3 of 12 blocks is block 4, index 3."""
    return max(0, round(part * len(readings.layers)) - 1)


def _level_0(evidence: Evidence) -> FilterEvidence:
    if evidence.level_0 is None:
        raise UnansweredError(evidence.no_filters)
    return evidence.level_0


def _correlation(a_BM: np.ndarray, b_BM: np.ndarray) -> np.ndarray:
    a, b = torch.from_numpy(a_BM), torch.from_numpy(b_BM)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return torch.cosine_similarity(a, b, dim=1).numpy()
