"""How the tokens of objects cluster: adaptive DBSCAN and what it says (arXiv 2210.07646).

Shapes: N tokens of one image (no class token), C channels, L layers, T object tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import config_context
from sklearn.cluster import DBSCAN
from sklearn.metrics import silhouette_score
from torch import Tensor

MIN_SAMPLES = 3
NOISE = -1
# To look at so few points again and again costs scikit-learn more than to cluster them.
TRUSTED = {"assume_finite": True, "skip_parameter_validation": True}
# What the released code gives where there is nothing to measure.
NO_CLUSTER = {"in_cluster_cosine": -1.0, "silhouette": -1.0}
MEASURES = (
    *("purity", "unique_label_rate", "clusters_per_object"),
    *("in_cluster_cosine", "in_object_cosine", "silhouette"),
)


@dataclass(frozen=True)
class Clustering:
    """DBSCAN of one image and layer.

    Attributes:
        clusters: (T,) cluster of each object token, object after object; -1 is noise.
        objects: (T,) object of each of these tokens.
        eps: radius that was used.
    """

    clusters: np.ndarray
    objects: np.ndarray
    eps: float

    @property
    def count(self) -> int:
        """Number of clusters K."""
        return int(self.clusters.max(initial=NOISE)) + 1

    def overlap(self) -> np.ndarray:
        """(K, objects) number of tokens that a cluster shares with an object."""
        table = np.zeros((self.count, int(self.objects.max()) + 1), dtype=np.int64)
        inside = self.clusters != NOISE
        np.add.at(table, (self.clusters[inside], self.objects[inside]), 1)
        return table


def grouping_metrics(
    hidden: Tensor, objects: Sequence[Tensor], labels: Sequence[str]
) -> dict[str, float]:
    """How well clusters of tokens agree with objects, in one image and layer.

    Args:
        hidden: (N, C) block output without class token and final norm.
        objects: token indices (row-major) of each object, two at least.
        labels: class name of each object.

    Returns:
        ``purity``: share of object tokens that lie in a cluster dominated by their object;
        ``unique_label_rate``: class names among dominating objects over class names present;
        ``clusters_per_object``; ``in_cluster_cosine`` and ``in_object_cosine``: mean pairwise
        cosine similarity, averaged over clusters and objects; ``silhouette``: of the clustered
        tokens, cosine metric. Without a cluster the first three are 0, the similarity in clusters
        and the silhouette -1; with a single one the silhouette is 0.

    Raises:
        ValueError: no objects, an object of fewer than two tokens, labels that do not match, an
            index outside, or a value that is not finite.
    """
    _check(hidden, objects, labels)
    clustering = cluster_objects(hidden, objects)
    x_TC = hidden[torch.cat(list(objects))].numpy(force=True)
    kept = clustering.clusters != NOISE
    metrics = _agreement(clustering, labels) | NO_CLUSTER
    metrics["in_object_cosine"] = _mean_cosine(x_TC, clustering.objects, len(objects))
    if clustering.count:
        within = _mean_cosine(x_TC[kept], clustering.clusters[kept], clustering.count)
        metrics["in_cluster_cosine"] = within
        metrics["silhouette"] = 0.0
    if 1 < clustering.count < kept.sum():
        with config_context(**TRUSTED):
            score = silhouette_score(x_TC[kept], clustering.clusters[kept], metric="cosine")
        metrics["silhouette"] = float(score)
    return {name: metrics[name] for name in MEASURES}


def grouping_by_layer(
    hidden_LNC: Tensor, objects: Sequence[Tensor], labels: Sequence[str]
) -> list[dict[str, float]]:
    """:func:`grouping_metrics` of every layer of one image."""
    return [grouping_metrics(hidden_NC, objects, labels) for hidden_NC in hidden_LNC]


def cluster_objects(hidden: Tensor, objects: Sequence[Tensor]) -> Clustering:
    """DBSCAN of all object tokens of an image, with a radius taken from the image itself.

    The radius is the distance of consecutive tokens of an object, averaged first within objects
    and then over them.
    """
    eps = adaptive_radius(hidden, objects)
    x_TC = hidden[torch.cat(list(objects))].numpy(force=True)
    # Objects whose tokens are all the same have radius 0, which DBSCAN does not take.
    radius = max(eps, float(np.finfo(np.float32).tiny))
    with config_context(**TRUSTED):
        clusters = DBSCAN(eps=radius, min_samples=MIN_SAMPLES).fit_predict(x_TC)
    sizes = [len(tokens) for tokens in objects]
    return Clustering(clusters, np.repeat(np.arange(len(objects)), sizes), eps)


def adaptive_radius(hidden: Tensor, objects: Sequence[Tensor]) -> float:
    """Mean over objects of the mean distance between tokens that follow each other."""
    steps = [(hidden[tokens[1:]] - hidden[tokens[:-1]]).norm(dim=1).mean() for tokens in objects]
    return float(torch.stack(steps).mean())


def _agreement(clustering: Clustering, labels: Sequence[str]) -> dict[str, float]:
    overlap = clustering.overlap()
    dominating = overlap.argmax(1)  # ties: the first object
    named = {labels[index] for index in dominating}
    return {
        "purity": float(overlap.max(1, initial=0).sum() / len(clustering.objects)),
        "unique_label_rate": len(named) / len(set(labels)),
        "clusters_per_object": clustering.count / len(labels),
    }


def _mean_cosine(x_TC: np.ndarray, group_T: np.ndarray, groups: int) -> float:
    """Mean over groups of the mean cosine similarity of their pairs."""
    x_TC = x_TC.astype(np.float64)
    length_T1 = np.linalg.norm(x_TC, axis=1, keepdims=True)
    unit_TC = x_TC / np.maximum(length_T1, np.finfo(np.float64).tiny)
    similarities = []
    for group in range(groups):
        members = unit_TC[group_T == group]
        count = len(members)
        # The square of a sum is its squares and twice its pairs.
        pairs = (members.sum(0) ** 2).sum() - (members**2).sum()
        # Border tokens can all have gone to an earlier cluster: one token has no pair.
        similarities.append(pairs / (count * (count - 1)) if count > 1 else 1.0)
    return float(np.mean(similarities))


def _check(hidden: Tensor, objects: Sequence[Tensor], labels: Sequence[str]) -> None:
    if hidden.ndim != 2:
        raise ValueError(f"hidden must be (tokens, channels) of one image, got {hidden.ndim} axes")
    if not objects or len(objects) != len(labels):
        raise ValueError(
            f"there are {len(objects)} objects and {len(labels)} labels; give one label for each "
            "object, and at least one object"
        )
    for index, tokens in enumerate(objects):
        if len(tokens) < 2:
            raise ValueError(
                f"object {index} ({labels[index]}) has {len(tokens)} tokens; leave out objects "
                "of fewer than 2"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= len(hidden):
            raise ValueError(
                f"object {index} ({labels[index]}) has token {int(tokens.max())}, but there are "
                f"{len(hidden)} tokens"
            )
    if not bool(hidden.isfinite().all()):
        raise ValueError("hidden holds a value that is not finite; nothing can be clustered")
