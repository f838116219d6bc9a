"""A benchmark's result: one row a case, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A ratio over the rounds of a measurement: median and quartiles; exact ones have no width."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)

    @classmethod
    def exact(cls, value: float) -> Spread:
        return cls(value, value, value)

    def __str__(self) -> str:
        if self.lower == self.upper:
            return _short(self.median)
        return f"{_short(self.median)} [{_short(self.lower)}, {_short(self.upper)}]"


@dataclass(frozen=True)
class Row:
    """One case: what was measured under which heading, what was to be reached, whether it was."""

    case: str
    values: Mapping[str, Spread | str]
    reach: str
    met: bool


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; the headings are those of the first row."""
    headings = list(rows[0].values)
    lines = [["case", *headings, "reach", "met"], ["---"] * (len(headings) + 3)]
    for row in rows:
        values = [str(row.values[heading]) for heading in headings]
        lines.append([row.case, *values, row.reach, "yes" if row.met else "**no**"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
