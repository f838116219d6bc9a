"""Stratified splits, the same in every run.

The images that a model is tested on must not change with the seed of a run: otherwise the spread
over seeds would mix two things, and a model could be tested on what another seed trained on. So
data sets without a test set of their own are split with :data:`SPLIT_SEED`, never with the
run's seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triptych.seeding import derive_seed

SPLIT_SEED = 0

Indices = NDArray[np.int64]


def stratified_split(
    labels: ArrayLike,
    *,
    test_fraction: float | None = None,
    test_count: int | None = None,
    seed: int = SPLIT_SEED,
) -> tuple[Indices, Indices]:
    """Indices (train, test), ascending, disjoint, together all of ``labels`` (N,).

    The test part has ``test_count`` samples, or ``test_fraction`` · N rounded; each class gives
    its share to within one sample, and keeps at least one sample on either side.

    Raises:
        ValueError: not just one of the two sizes is given, the size is out of range, or a class
            is too small to be split.
    """
    labels_N = np.asarray(labels)
    total = _split_size(len(labels_N), test_fraction, test_count)
    classes, counts = np.unique(labels_N, return_counts=True)
    if counts.min() < 2:
        name = classes[counts.argmin()]
        raise ValueError(f"class {name} has 1 sample; a split into train and test needs at least 2")
    if not len(classes) <= total <= len(labels_N) - len(classes):
        raise ValueError(
            f"a test split of {total} samples from {len(labels_N)} cannot leave at least one "
            f"sample of each of {len(classes)} classes on both sides; legal sizes are "
            f"{len(classes)} to {len(labels_N) - len(classes)}"
        )
    test = _draw(labels_N, _allocate(counts, total, most=counts - 1), seed)
    return np.setdiff1d(np.arange(len(labels_N)), test), test


def train_fraction(labels: ArrayLike, fraction: float, seed: int = SPLIT_SEED) -> Indices:
    """Ascending indices of a stratified ``fraction`` of ``labels`` (N,), one or more a class.

    A smaller fraction with the same seed takes a subset of what a larger one takes, but for the
    samples that rounding moves between classes.

    Raises:
        ValueError: the fraction is not in (0, 1], or too small for one sample of each class.
    """
    labels_N = np.asarray(labels)
    if not 0 < fraction <= 1:
        raise ValueError(f"a training fraction must be in (0, 1], got {fraction}")
    classes, counts = np.unique(labels_N, return_counts=True)
    total = round(fraction * len(labels_N))
    if total < len(classes):
        raise ValueError(
            f"a training fraction of {fraction} leaves {total} of {len(labels_N)} samples, fewer "
            f"than the {len(classes)} classes; the smallest legal fraction is "
            f"{np.ceil(len(classes) / len(labels_N) * 1e6) / 1e6:g}"
        )
    return _draw(labels_N, _allocate(counts, total, most=counts), seed)


def _split_size(size: int, fraction: float | None, count: int | None) -> int:
    if (fraction is None) == (count is None):
        raise ValueError(
            f"give just one of test_fraction and test_count, got {fraction} and {count}"
        )
    if count is not None:
        return count
    if fraction is None or not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {fraction}")
    return round(fraction * size)


def _allocate(counts: Indices, total: int, *, most: Indices) -> Indices:
    """Share ``total`` out in proportion to ``counts``, from 1 to ``most`` for each class."""
    quota = total * counts / counts.sum()
    shares = np.clip(np.floor(quota).astype(np.int64), 1, most)
    while shares.sum() < total:
        shares[np.where(shares < most, quota - shares, -np.inf).argmax()] += 1
    while shares.sum() > total:
        shares[np.where(shares > 1, quota - shares, np.inf).argmin()] -= 1
    return shares


def _draw(labels_N: NDArray, shares: Indices, seed: int) -> Indices:
    """The first ``shares`` samples of each class in an order that only class and seed set."""
    parts = []
    for label, share in zip(np.unique(labels_N), shares, strict=True):
        members = np.flatnonzero(labels_N == label)
        generator = np.random.default_rng(derive_seed("split", seed, str(label)))
        parts.append(generator.permutation(members)[:share])
    return np.sort(np.concatenate(parts)).astype(np.int64)
