"""Pieces of a batch, repeated augmentation, and blocks that are read together."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import SampleKey, SeededBatchSampler
from triptych.data.loading import MIXED_BLOCKS


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_pieces_make_up_the_batch(world: int, pieces: int, each: int, extra: int) -> None:
    batch = world * pieces * each
    samples = 2 * batch + extra
    whole = list(SeededBatchSampler(samples, batch, 1, drop_last=True))
    parts = [
        list(
            SeededBatchSampler(
                samples, batch, 1, drop_last=True, rank=rank, world_size=world, pieces=pieces
            )
        )
        for rank in range(world)
    ]
    for number, expected in enumerate(whole):
        lists = [part[number * pieces : (number + 1) * pieces] for part in parts]
        assert [key for own in lists for piece in own for key in piece] == expected
        assert all(len(piece) == each for own in lists for piece in own)


@given(st.integers(1, 60), st.integers(2, 4), st.integers(0, 2))
def test_repeats_show_a_part_of_the_samples_in_copies(
    samples: int, repeats: int, epoch: int
) -> None:
    sampler = SeededBatchSampler(samples, samples, 3, repeats=repeats)
    sampler.set_position(epoch)
    (batch,) = sampler
    assert len(batch) == samples == len(set(batch))
    counts = Counter(key.index for key in batch)
    assert len(counts) == -(-samples // repeats)
    assert sorted(counts.values())[1:] == [repeats] * (len(counts) - 1)
    assert {key.epoch // repeats for key in batch} == {epoch}


def test_copies_are_neither_neighbours_nor_alike() -> None:
    batches = list(SeededBatchSampler(96, 32, 0, repeats=3, drop_last=True))
    for batch in batches:
        assert all(a.index != b.index for a, b in itertools.pairwise(batch))
        assert {key.epoch for key in batch} == {0, 1, 2}
    once = SeededBatchSampler(96, 32, 0, repeats=1)
    assert all(key.epoch == 0 for batch in once for key in batch)


def test_repeats_go_on_in_the_middle() -> None:
    whole = list(SeededBatchSampler(50, 8, 4, repeats=3))
    resumed = SeededBatchSampler(50, 8, 4, repeats=3)
    resumed.set_position(0, 4)
    assert list(resumed) == whole[4:]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3))
def test_blocks_hold_each_sample_once(samples: int, block: int, epoch: int) -> None:
    order = SeededBatchSampler(samples, samples, 0, block=block).order(epoch)
    assert sorted(order) == list(range(samples))


def test_blocks_are_read_together() -> None:
    block, samples = 10, 640
    order = SeededBatchSampler(samples, samples, 0, block=block).order(0)
    for first in range(0, samples, MIXED_BLOCKS * block):
        together = order[first : first + MIXED_BLOCKS * block]
        assert len(np.unique(together // block)) == MIXED_BLOCKS
    assert SampleKey(0, int(order[0])) != SampleKey(0, 0)
    other = SeededBatchSampler(samples, samples, 0, block=block).order(1)
    assert not np.array_equal(order, other)


def test_a_batch_that_does_not_come_apart() -> None:
    with pytest.raises(ValueError, match="to 2 processes in 3 pieces each"):
        SeededBatchSampler(40, 8, 0, world_size=2, pieces=3)
