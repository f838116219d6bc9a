"""One machine, one clock: nothing of ours trains while something of ours is timed.

Training holds the lock shared, measuring holds it exclusively. It is advisory (flock on a file in
the temporary folder, one for each user), it is released when its process ends, however it ends,
and processes with another TMPDIR do not see it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

PATIENCE_SECONDS = 0.3
# A second lock taken by the same thread would wait for the first for ever.
_held: ContextVar[bool] = ContextVar("timing_lock_held", default=False)


@contextmanager
def timing_lock(
    exclusive: bool,
    *,
    report: Callable[[str], None] = print,
    folder: Path | None = None,
) -> Iterator[None]:
    """Hold the timing lock: ``exclusive`` to measure, shared to train.

    Who must wait says so once through ``report``. A process that waits to measure keeps later
    trainings out, so that it gets its turn.

    Args:
        exclusive: whether nobody else may hold the lock.
        report: is given one line if there is something to wait for.
        folder: where the lock lies, by default the temporary folder.

    Raises:
        RuntimeError: this thread holds the lock already.
    """
    if _held.get():
        raise RuntimeError("this thread holds the timing lock already; release it first")
    place = folder or Path(tempfile.gettempdir())
    name = f"triptych-timing-{os.getuid()}"
    with (
        _opened(place / f"{name}.gate") as gate,
        _opened(place / f"{name}.lock") as lock,
    ):
        _enter(gate, lock, exclusive, report)
        token = _held.set(True)
        try:
            yield
        finally:
            _held.reset(token)
            # Closing is not enough: a forked loader worker may have the file open still.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _enter(gate: int, lock: int, exclusive: bool, report: Callable[[str], None]) -> None:
    """Lock ``lock`` through the gate, which is open again afterwards.

    flock has no queue: without the gate a stream of trainings would starve a measurement.
    """
    line = (
        "measuring waits until nothing else trains or is measured"
        if exclusive
        else "training waits until a measurement is over"
    )
    waited = _acquire(gate, fcntl.LOCK_EX, lambda: report(line))
    try:
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        _acquire(lock, operation, lambda: None if waited else report(line))
    finally:
        fcntl.flock(gate, fcntl.LOCK_UN)


def _acquire(file: int, operation: int, say: Callable[[], None]) -> bool:
    """Lock ``file``; returns whether it had to be waited for, which ``say`` has told.

    The gate is held for an instant by everyone who passes: that is no wait worth telling of.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return False
    say()
    fcntl.flock(file, operation)
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)
