"""Handlers stand for a block of code and no longer, however it ends."""

from __future__ import annotations

import os
import signal

import pytest

from triptych.signals import at_signals


def test_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    heard: list[int] = []

    def interrupted() -> None:
        with at_signals((signal.SIGTERM, signal.SIGUSR1), lambda number, _: heard.append(number)):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        interrupted()
    assert heard == [signal.SIGUSR1, signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_blocks_within_blocks() -> None:
    heard: list[str] = []
    with at_signals((signal.SIGUSR1,), lambda *_: heard.append("outer")):
        with at_signals((signal.SIGUSR1,), signal.SIG_IGN):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == ["outer"]
