"""Batches taken ahead by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from triptych.data.ahead import ahead


def test_the_batches_come_in_their_order_and_the_thread_ends():
    before = threading.active_count()
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter(()))) == []
    assert threading.active_count() == before


def test_the_next_batch_is_taken_while_one_is_used():
    taken = [threading.Event() for _ in range(3)]

    def source() -> Iterator[int]:
        for number, event in enumerate(taken):
            event.set()
            yield number

    batches = ahead(source())
    assert next(batches) == 0
    assert taken[1].wait(10)
    assert list(batches) == [1, 2]


def test_an_error_is_raised_where_its_batch_would_come():
    def source() -> Iterator[int]:
        yield 1
        raise RuntimeError("a worker died")

    batches = ahead(source())
    assert next(batches) == 1
    with pytest.raises(RuntimeError, match="a worker died"):
        next(batches)


@pytest.mark.parametrize("used", [0, 1, 3])
def test_an_iteration_that_is_broken_off_leaves_no_thread(used):
    before = threading.active_count()
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    batches = ahead(source())
    for _ in range(used):
        next(batches)
    batches.close()
    assert threading.active_count() == before
    del batches
    assert used == 0 or closed.wait(10)
