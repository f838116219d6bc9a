"""What happens at a signal, for as long as a block of code runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def at_signals(
    numbers: Sequence[signal.Signals], handle: Callable[[int, FrameType | None], Any] | int
) -> Iterator[None]:
    """Call ``handle`` at these signals, or ``signal.SIG_IGN``; afterwards all is as it was.

    Raises:
        ValueError: not in the main thread, the only one that Python lets do this.
    """
    former = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
