"""Order, position and sharing out of batches."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data import (
    Augmentation,
    ImageSource,
    ImageSpec,
    SampleKey,
    SeededBatchSampler,
    load_images,
    make_loader,
)


@pytest.fixture(scope="module")
def train():
    augmentation = Augmentation(random_resized_crop=(0.4, 1.0), flip=0.5, color_jitter=0.3)
    spec = ImageSpec(ImageSource.synthetic, 16, synthetic_images=50, augmentation=augmentation)
    return load_images(spec, seed=0).train


def flat(batches):
    return [key for batch in batches for key in batch]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_each_sample_once_an_epoch(samples, batch_size, seed):
    sampler = SeededBatchSampler(samples, batch_size, seed)
    for epoch in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert sorted(flat(batches)) == [SampleKey(epoch, i) for i in range(samples)]


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_resumed_order_is_the_rest_of_the_order(samples, batch_size, data):
    whole = SeededBatchSampler(samples, batch_size, 5)
    epochs = [list(whole) for _ in range(3)]
    epoch = data.draw(st.integers(0, 1))
    batch = data.draw(st.integers(0, len(whole)))
    resumed = SeededBatchSampler(samples, batch_size, 5)
    resumed.set_position(epoch, batch)
    assert len(resumed) == len(whole)
    if batch < len(whole):
        assert list(resumed) == epochs[epoch][batch:]
    assert list(resumed) == epochs[epoch + 1]


def test_epochs_and_seeds_differ():
    first = SeededBatchSampler(30, 30, 0)
    orders = [tuple(first.order(0)), tuple(first.order(1))]
    orders.append(tuple(SeededBatchSampler(30, 30, 1).order(0)))
    assert len(set(orders)) == 3


def test_without_shuffling():
    sampler = SeededBatchSampler(5, 2, 0, shuffle=False)
    for epoch in range(2):
        assert [[k.index for k in batch] for batch in sampler] == [[0, 1], [2, 3], [4]]
        assert sampler.position == (epoch + 1, 0)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 60), st.booleans())
def test_processes_share_the_same_batches(world_size, per_process, extra, drop_last):
    batch_size = world_size * per_process
    samples = batch_size + extra
    if not drop_last and samples % batch_size < world_size:
        samples -= samples % batch_size
    alone = list(SeededBatchSampler(samples, batch_size, 2, drop_last=drop_last))
    parts = [
        list(
            SeededBatchSampler(
                samples, batch_size, 2, drop_last=drop_last, rank=rank, world_size=world_size
            )
        )
        for rank in range(world_size)
    ]
    assert [flat(step) for step in zip(*parts, strict=True)] == alone
    sizes = np.array([[len(batch) for batch in part] for part in parts])
    assert sizes.min() >= 1
    assert (sizes.max(0) - sizes.min(0)).max() <= 1


def test_drop_last_and_max_batches():
    assert len(SeededBatchSampler(10, 4, 0, drop_last=True)) == 2
    assert len(SeededBatchSampler(10, 4, 0)) == 3
    short = SeededBatchSampler(10, 4, 0, max_batches=2)
    assert [len(list(short)) for _ in range(2)] == [2, 2]
    assert short.position == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_workers(train, workers):
    loader = make_loader(train, batch_size=8, seed=3, shuffle=True, num_workers=workers)
    sampler = SeededBatchSampler(len(train), 8, 3)
    for _ in range(2):
        for batch, keys in zip(loader, sampler, strict=True):
            expected = train.__getitems__(keys)
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
            assert type(batch) is type(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_loader_goes_on(train, workers):
    def loader():
        return make_loader(train, batch_size=8, seed=3, shuffle=True, num_workers=workers)

    first = loader()
    epochs = [[batch.images for batch in first] for _ in range(3)]
    interrupted = loader()
    list(interrupted)
    for number, _ in enumerate(interrupted):
        if number == 1:
            break
    state = interrupted.state_dict()
    assert state == {"epoch": 1, "batch": 2}
    resumed = loader()
    resumed.load_state_dict(state)
    rest = [batch.images for batch in resumed]
    assert len(rest) == len(resumed) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, epochs[1][2:], strict=True))
    assert resumed.position == (2, 0)
    again = [batch.images for batch in resumed]
    assert all(torch.equal(a, b) for a, b in zip(again, epochs[2], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_iterators_that_nobody_reads_change_nothing(train, workers):
    loader = make_loader(train, batch_size=8, shuffle=True, num_workers=workers)
    loader.set_position(4, 1)
    iter(loader)
    iter(loader)
    assert loader.position == (4, 1)
    assert next(iter(loader)).indices.tolist() == loader.batch_sampler.order(4)[8:16].tolist()


def test_an_epoch_that_is_broken_off_is_over(train):
    loader = make_loader(train, batch_size=8, shuffle=False)
    next(iter(loader))
    assert loader.position == (0, 1)
    assert len(list(loader)) == len(loader)
    assert loader.position == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generator_is_left_alone(train, workers):
    state = torch.get_rng_state()
    list(make_loader(train, batch_size=8, num_workers=workers))
    assert torch.equal(state, torch.get_rng_state())


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 4))
def test_position_after_each_batch(train, seen):
    loader = make_loader(train, batch_size=8)
    iterator = iter(loader)
    for _ in range(seen):
        next(iterator)
    assert loader.position == (0, seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_batches": 0}, "max_batches must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be in 0 … world_size − 1, got 2 of 2"),
        ({"world_size": 3}, "a batch of 4 cannot be shared out evenly to 3 processes"),
        (
            {"num_samples": 3, "drop_last": True},
            "3 samples give no whole batch of 4; the largest legal batch_size with drop_last is 3",
        ),
        (
            {"num_samples": 9, "world_size": 2},
            "the last batch has 1 of 9 samples, too few for 2 processes; use drop_last or another "
            "batch_size than 4",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SeededBatchSampler(**{"num_samples": 10, "batch_size": 4, "seed": 0} | arguments)


def test_bad_position():
    message = "there is no batch 4 of epoch 0; an epoch has 3 batches, and both count from 0"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SeededBatchSampler(10, 4, 0).set_position(0, 4)


def test_bad_workers(train):
    with pytest.raises(ValueError, match=r"^num_workers must be at least 0, got -1$"):
        make_loader(train, batch_size=4, num_workers=-1)
