"""Stratified splits."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from triptych.data.splits import stratified_split, train_fraction


@st.composite
def labelled(draw, least=2):
    counts = draw(st.lists(st.integers(least, 30), min_size=1, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 9))).permutation(labels)


@given(labelled(), st.data(), st.integers(0, 3))
def test_split_is_stratified(labels, data, seed):
    classes = len(np.unique(labels))
    count = data.draw(st.integers(classes, len(labels) - classes))
    train, test = stratified_split(labels, test_count=count, seed=seed)
    assert len(test) == count
    np.testing.assert_array_equal(np.union1d(train, test), np.arange(len(labels)))
    assert len(train) + len(test) == len(labels)
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    for part in (train, test):
        assert np.bincount(labels[part], minlength=classes).min() >= 1


@given(st.integers(2, 9), st.integers(4, 40), st.floats(0.1, 0.6), st.integers(0, 3))
def test_shares_are_exact_to_one_sample(classes, size, fraction, seed):
    labels = np.tile(np.arange(classes), size)
    assume(classes <= round(fraction * len(labels)) <= len(labels) - classes)
    _, test = stratified_split(labels, test_fraction=fraction, seed=seed)
    shares = np.bincount(labels[test], minlength=classes)
    assert np.abs(shares - fraction * size).max() <= 1
    assert shares.sum() == round(fraction * len(labels))


def test_unequal_classes_keep_their_proportion():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    _, test = stratified_split(labels, test_fraction=0.1)
    assert np.bincount(labels[test]).tolist() == [50, 30, 20]


def test_split_is_the_same_without_a_seed_and_moves_with_one():
    labels = np.arange(1000) % 10
    default = stratified_split(labels, test_fraction=0.2)[1]
    np.testing.assert_array_equal(default, stratified_split(labels, test_fraction=0.2)[1])
    other = stratified_split(labels, test_fraction=0.2, seed=1)[1]
    assert not np.array_equal(default, other)


@given(labelled(least=1), st.floats(0.01, 1))
def test_training_fraction(labels, fraction):
    classes = len(np.unique(labels))
    assume(round(fraction * len(labels)) >= classes)
    kept = train_fraction(labels, fraction, seed=1)
    assert len(kept) == round(fraction * len(labels))
    assert (np.diff(kept) > 0).all()
    assert set(labels[kept]) == set(labels)


def test_smaller_fraction_is_a_subset():
    labels = np.arange(1000) % 10
    small, large = train_fraction(labels, 0.1, 5), train_fraction(labels, 0.4, 5)
    assert set(small) <= set(large)


LABELS = np.array([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give just one of test_fraction and test_count, got None and None"),
        (
            {"test_fraction": 0.5, "test_count": 3},
            "give just one of test_fraction and test_count, got 0.5 and 3",
        ),
        ({"test_fraction": 1.0}, "test_fraction must be in (0, 1), got 1.0"),
        (
            {"test_count": 1},
            "a test split of 1 samples from 6 cannot leave at least one sample of each of 2 "
            "classes on both sides; legal sizes are 2 to 4",
        ),
    ],
)
def test_bad_split(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stratified_split(LABELS, **arguments)


def test_class_too_small():
    message = "class 7 has 1 sample; a split into train and test needs at least 2"
    with pytest.raises(ValueError, match=f"^{message}$"):
        stratified_split([1, 1, 7], test_count=1)


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, "a training fraction must be in (0, 1], got 0.0"),
        (1.5, "a training fraction must be in (0, 1], got 1.5"),
        (
            0.1,
            "a training fraction of 0.1 leaves 1 of 6 samples, fewer than the 2 classes; the "
            "smallest legal fraction is 0.333334",
        ),
    ],
)
def test_bad_fraction(fraction, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train_fraction(LABELS, fraction)


def test_smallest_legal_fraction_is_legal():
    assert len(train_fraction(LABELS, 0.333334)) == 2
