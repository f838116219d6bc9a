"""Speed of several candidates, measured alternately in one process.

A machine gets faster and slower while one measures: neighbours come and go, clocks and caches
change. So the candidates take turns, one step each, and the order is turned round in every second
round, so that none always follows the same other. Ratios are taken within a round, where
conditions were most alike, and summed up by their median and quartiles.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from triptych.measure.candidate import Candidate, InferenceStep, TrainingStep, preserved

Step = Callable[[], None]


@dataclass(frozen=True)
class Ratio:
    """How a candidate compares with the baseline: above 1 it is faster.

    ``rounds`` has one ratio of throughputs a round; ``lower`` and ``upper`` are their quartiles.
    """

    median: float
    lower: float
    upper: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Seconds:
    """Seconds a step took in each round, training and inference."""

    train: tuple[float, ...]
    inference: tuple[float, ...]


def time_interleaved(
    candidates: Mapping[str, Candidate], rounds: int, *, warmup: int = 2
) -> dict[str, Seconds]:
    """Time a training and an inference step of each candidate in each of ``rounds`` rounds.

    ``warmup`` untimed rounds come first. All candidates keep their gradients and optimizers for
    that time, so their memory must fit at once; afterwards the models are as they were.

    Raises:
        ValueError: no candidate, no round, or a negative ``warmup``.
    """
    if not candidates:
        raise ValueError("there is no candidate to measure")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    kinds: dict[str, dict[str, tuple[float, ...]]] = {}
    with ExitStack() as stack:
        for candidate in candidates.values():
            stack.enter_context(preserved(candidate.model))
        for kind, make in (("train", TrainingStep), ("inference", InferenceStep)):
            steps = {name: make(candidate) for name, candidate in candidates.items()}
            devices = {name: candidate.device for name, candidate in candidates.items()}
            kinds[kind] = _rounds(steps, devices, rounds, warmup)
    return {name: Seconds(kinds["train"][name], kinds["inference"][name]) for name in candidates}


def throughput(seconds: tuple[float, ...], images: int) -> float:
    """Images per second, from the median step."""
    return images / statistics.median(seconds)


def ratio(
    seconds: tuple[float, ...], images: int, baseline: tuple[float, ...], baseline_images: int
) -> Ratio:
    """Throughput against that of a baseline timed in the same rounds.

    Raises:
        ValueError: the two were not timed in equally many rounds.
    """
    if len(seconds) != len(baseline):
        raise ValueError(
            f"a ratio needs equally many rounds, got {len(seconds)} and {len(baseline)}"
        )
    rounds = [
        (images / own) / (baseline_images / other)
        for own, other in zip(seconds, baseline, strict=True)
    ]
    lower, median, upper = np.quantile(rounds, (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, lower, upper, tuple(rounds))


def _rounds(
    steps: Mapping[str, Step], devices: Mapping[str, torch.device], rounds: int, warmup: int
) -> dict[str, tuple[float, ...]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with _no_garbage_collection():
        for number in range(warmup + rounds):
            for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
                taken = timed(steps[name], devices[name])
                if number >= warmup:
                    seconds[name].append(taken)
    return {name: tuple(values) for name, values in seconds.items()}


def timed(step: Step, device: torch.device) -> float:
    """Seconds that one call of ``step`` takes, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
