"""Time steps alternately in one process, and compare them round by round.

The order is turned round in every second round, so that none always follows the same other;
ratios are taken within a round, where conditions were most alike. Nothing of ours trains meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

import torch

from benchmarks.rows import Spread
from triptych.measure.timing import timed
from triptych.measure.timing_lock import timing_lock

Step = Callable[[], None]


def interleave(
    steps: Mapping[str, Step], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each step in each of ``rounds`` rounds, after ``warmup`` untimed ones."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with timing_lock(exclusive=True):
        for number in range(warmup + rounds):
            gc.collect()
            for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
                taken = timed(steps[name], device)
                if number >= warmup:
                    seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> Spread:
    """How many times longer ``over`` takes than ``under``, over the rounds."""
    return Spread.of([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])
