"""Statements of arXiv 2210.07646 asked of one's own model: what holds, how clearly, and what not.

A statement is a set of checks. A check is a number for each image of a probe set, with a bound that
its mean has to be clearly beyond: the whole 95 % interval over images. What a model or data set has
no answer to is said with the reason and never counted as an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from triptych.visualization.evidence import Evidence
from triptych.visualization.intervals import Mean, mean_over_images

LEAST_IMAGES = 5


class Verdict(StrEnum):
    holds = "holds"
    untrained = "holds also untrained"
    fails = "does not hold"
    unanswered = "cannot be asked"


class UnansweredError(Exception):
    """Why a statement has no answer for a model or a probe set; the message is for the reader."""


@dataclass(frozen=True)
class Check:
    """One number of a statement.

    Attributes:
        name: short name, unique within the finding.
        quantity: what the number is.
        values: one an image (B,), NaN where an image has none.
        bound: what the number is held against.
        above: whether it has to be above the bound, or below.
        reference: the paper's number for ViT-B/16, in words; empty where there is none.
        every: the statement is about every image: the worst value counts, without an interval.
    """

    name: str
    quantity: str
    values: np.ndarray
    bound: float
    above: bool = True
    reference: str = ""
    every: bool = False

    @property
    def mean(self) -> Mean:
        """The number with its interval over images."""
        if not self.every:
            return mean_over_images(self.values)
        worst = float(np.nanmin(self.values) if self.above else np.nanmax(self.values))
        return Mean(worst, worst, worst, int(np.isfinite(self.values).sum()))

    @property
    def verdict(self) -> Verdict:
        found = self.mean
        if found.count < (1 if self.every else LEAST_IMAGES):
            return Verdict.unanswered
        if self.every:
            fine = found.value >= self.bound if self.above else found.value <= self.bound
        else:
            fine = found.low > self.bound if self.above else found.high < self.bound
        return Verdict.holds if fine else Verdict.fails

    @property
    def wanted(self) -> str:
        """``> 0.7``."""
        sign = (">=" if self.above else "<=") if self.every else (">" if self.above else "<")
        return f"{sign} {self.bound:g}"

    @property
    def reason(self) -> str:
        """Why a check is not answered, or is not met although its mean is beyond the bound."""
        found, verdict = self.mean, self.verdict
        if verdict is Verdict.unanswered:
            return f"{found.count} images have {self.quantity}; {LEAST_IMAGES} are needed"
        beyond = found.value > self.bound if self.above else found.value < self.bound
        if verdict is Verdict.fails and beyond and not self.every:
            return "the interval holds the bound"
        return ""


@dataclass(frozen=True)
class Finding:
    """A statement with its checks; ``reason`` says why there is none.

    ``control``: the same statement asked of the same network at its initial weights; None where
    that was not asked.
    """

    number: str
    statement: str
    checks: tuple[Check, ...] = ()
    reason: str = ""
    control: Finding | None = None

    @property
    def verdict(self) -> Verdict:
        """Holds if every check does; with none that fails, one without an answer leaves it open."""
        verdicts = [check.verdict for check in self.checks]
        if Verdict.fails in verdicts:
            return Verdict.fails
        return Verdict.holds if set(verdicts) == {Verdict.holds} else Verdict.unanswered

    @property
    def judgement(self) -> Verdict:
        """The verdict in the light of the control: what holds untrained tells of no training."""
        untrained = self.control is not None and self.control.verdict is Verdict.holds
        return Verdict.untrained if untrained and self.verdict is Verdict.holds else self.verdict

    def judgement_of(self, check: Check) -> Verdict:
        """The same of one of its checks."""
        control = self.control_of(check)
        untrained = control is not None and control.verdict is Verdict.holds
        return Verdict.untrained if untrained and check.verdict is Verdict.holds else check.verdict

    def control_of(self, check: Check) -> Check | None:
        """The check of the same name of the control."""
        asked = self.control.checks if self.control is not None else ()
        return next((one for one in asked if one.name == check.name), None)


@dataclass(frozen=True)
class Statement:
    """What the paper says, and how it is checked."""

    number: str
    text: str
    ask: Callable[[Evidence], tuple[Check, ...]]


def evaluate_findings(evidence: Evidence) -> list[Finding]:
    """All statements F1 to F14, in their order."""
    from triptych.visualization.findings_statements import STATEMENTS

    findings = []
    for statement in STATEMENTS:
        try:
            checks, reason = statement.ask(evidence), ""
        except UnansweredError as why:
            checks, reason = (), str(why)
        findings.append(Finding(statement.number, statement.text, checks, reason))
    return findings


def with_controls(findings: Sequence[Finding], controls: Sequence[Finding]) -> list[Finding]:
    """``findings`` beside what the untrained network answers to the same statements."""
    answers = {one.number: one for one in controls}
    return [replace(one, control=answers.get(one.number)) for one in findings]
