"""Batches received from the workers while the step before still runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

END = object()
PAUSE = 0.002  # seconds


def ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, the next one taken by a thread as soon as one is handed out.

    To take a batch over from a worker costs some milliseconds of opening shared memory, which a
    step would otherwise wait for. An exception of ``batches`` is raised where its batch would come.
    """
    # In this thread: a loader that starts its workers should not do so beside a running one.
    batches = iter(batches)
    stop = threading.Event()
    ready: Queue[tuple[Any, BaseException | None]] = Queue(maxsize=1)
    thread = threading.Thread(target=_take, args=(batches, ready, stop), daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is END:
                return
            yield batch
    finally:
        stop.set()
        _empty(ready)
        thread.join()


def _take(batches: Iterator[Any], ready: Queue[Any], stop: threading.Event) -> None:
    try:
        for batch in batches:
            if stop.is_set():
                return
            ready.put((batch, None))
            # Whoever took the last batch should go on first, not wait for this thread's lock.
            if stop.wait(PAUSE):
                return
        ready.put((END, None))
    except BaseException as error:
        ready.put((None, error))


def _empty(ready: Queue[Any]) -> None:
    """Make room, so that a thread that waits to put a batch sees that it should stop."""
    with suppress(Empty):
        ready.get_nowait()
