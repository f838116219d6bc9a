"""All rules over one configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from triptych.config import RunConfig
from triptych.legality import (
    backbones,
    detection,
    evaluation,
    norms,
    objects,
    pretraining,
    sequences,
    training,
    visualization,
)
from triptych.ranges import RANGES, check_range


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        ConfigError: one sentence with the key, the value and what would be legal.
    """
    for rule in visualization.RULES:  # before ranges: photographs leave their size open
        rule(config)
    for key, value in _leaves(config):
        if key in RANGES:
            check_range(key, value, RANGES[key])
    for part in (
        sequences,
        objects,
        backbones,
        pretraining,
        norms,
        training,
        evaluation,
        detection,
    ):
        for rule in part.RULES:
            rule(config)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
