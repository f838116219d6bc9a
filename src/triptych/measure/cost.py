"""All costs of one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.measure.candidate import Candidate
from triptych.measure.counts import count_parameters, macs_per_image, saved_for_backward
from triptych.measure.memory import can_measure_peak, peak_memory
from triptych.measure.timing import Ratio, Seconds, ratio, throughput, time_interleaved


@dataclass(frozen=True)
class Cost:
    """What a model costs; :mod:`triptych.measure` says how each number is made.

    ``macs`` are multiply-adds per image, throughputs images/s, ``peak_memory`` MiB (None where
    the platform cannot tell), ``saved_for_backward`` MiB per image; ``seconds`` has the timed
    steps round by round, each of ``images`` images.
    """

    parameters: int
    trainable_parameters: int
    macs: float
    train_throughput: float
    inference_throughput: float
    peak_memory: float | None
    saved_for_backward: float
    images: int
    seconds: Seconds


@dataclass(frozen=True)
class CostRatios:
    """Throughput ratios to the baseline, paired round by round; above 1 is faster."""

    train: Ratio
    inference: Ratio


def measure_interleaved(
    candidates: Mapping[str, Candidate], rounds: int, *, warmup: int = 2
) -> dict[str, Cost]:
    """Measure every candidate; the timed steps of all are interleaved.

    Whoever calls this holds :func:`triptych.measure.timing_lock` exclusively. Models and random
    number generators are as before afterwards.

    Raises:
        ValueError: no candidate, no round, or a negative ``warmup``.
    """
    seconds = time_interleaved(candidates, rounds, warmup=warmup)
    return {name: _cost(candidate, seconds[name]) for name, candidate in candidates.items()}


def ratios(costs: Mapping[str, Cost], baseline: str) -> dict[str, CostRatios]:
    """Throughputs of all against ``baseline``, from costs that were measured together.

    Raises:
        ValueError: ``baseline`` is not among them.
    """
    if baseline not in costs:
        raise ValueError(f"the baseline {baseline} is none of {', '.join(costs)}")
    base = costs[baseline]
    return {
        name: CostRatios(
            ratio(cost.seconds.train, cost.images, base.seconds.train, base.images),
            ratio(cost.seconds.inference, cost.images, base.seconds.inference, base.images),
        )
        for name, cost in costs.items()
    }


def _cost(candidate: Candidate, seconds: Seconds) -> Cost:
    parameters, trainable = count_parameters(candidate.model)
    return Cost(
        parameters=parameters,
        trainable_parameters=trainable,
        macs=macs_per_image(candidate),
        train_throughput=throughput(seconds.train, candidate.images),
        inference_throughput=throughput(seconds.inference, candidate.images),
        peak_memory=peak_memory(candidate) if can_measure_peak(candidate.device) else None,
        saved_for_backward=saved_for_backward(candidate),
        images=candidate.images,
        seconds=seconds,
    )
