"""The findings as a table: rows for CSV, scalars for the run record, and a pair compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.visualization.findings import Check, Finding, Verdict
from triptych.visualization.intervals import paired_over_images


def finding_rows(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """One row per check; a statement without any has one row with the reason."""
    rows = []
    for finding in findings:
        for check in finding.checks:
            found = check.mean
            rows.append(
                _row(finding)
                | {
                    "check": check.name,
                    "quantity": check.quantity,
                    "value": found.value,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "images": found.count,
                    **_control(finding, check),
                    "wanted": check.wanted,
                    "met": str(finding.judgement_of(check)),
                    "reference": check.reference,
                    "reason": check.reason,
                }
            )
        if not finding.checks:
            rows.append(_row(finding) | _EMPTY | {"reason": finding.reason})
    return rows


_EMPTY: dict[str, object] = {
    "check": "",
    "quantity": "",
    "value": None,
    "ci_low": None,
    "ci_high": None,
    "images": 0,
    "untrained": None,
    "untrained_low": None,
    "untrained_high": None,
    "wanted": "",
    "met": str(Verdict.unanswered),
    "reference": "",
}


def _control(finding: Finding, check: Check) -> dict[str, object]:
    """What the same network gives untrained, with its interval; None where it was not asked."""
    control = finding.control_of(check)
    found = None if control is None else control.mean
    return {
        "untrained": None if found is None else found.value,
        "untrained_low": None if found is None else found.low,
        "untrained_high": None if found is None else found.high,
    }


def _row(finding: Finding) -> dict[str, object]:
    return {
        "finding": finding.number,
        "statement": finding.statement,
        "verdict": str(finding.judgement),
    }


def finding_metrics(findings: Sequence[Finding]) -> dict[str, dict[str, object]]:
    """Scalars for the run record: ``findings/F8/purity_rise``, and ``findings/F8/holds`` (0 or 1).

    What could not be asked is left out. What holds of the untrained network too holds.
    """
    metrics: dict[str, dict[str, object]] = {}
    for finding in findings:
        for check in finding.checks:
            if check.verdict is not Verdict.unanswered:
                name = f"findings/{finding.number}/{check.name}"
                metrics[name] = {"value": check.mean.value, "unit": "ratio"}
        if finding.verdict is not Verdict.unanswered:
            holds = float(finding.verdict is Verdict.holds)
            metrics[f"findings/{finding.number}/holds"] = {"value": holds, "unit": "fraction"}
    return metrics


def compare_findings(
    first: Sequence[Finding], second: Sequence[Finding]
) -> list[dict[str, object]]:
    """Two models on one probe set: ``first`` − ``second`` of every check that both answer.

    Paired over images, with a 95 % interval, the words "no detectable difference" where it
    holds 0, both verdicts, and what both networks give untrained.

    Raises:
        ValueError: they are not of the same images.
    """
    others = {(one.number, check.name): (one, check) for one in second for check in one.checks}
    rows: list[dict[str, object]] = []
    for finding in first:
        for check in finding.checks:
            if (finding.number, check.name) in others:
                rows.append(_compared(finding, check, *others[finding.number, check.name]))
    return rows


def _compared(
    finding: Finding, check: Check, other: Finding, other_check: Check
) -> dict[str, object]:
    change = paired_over_images(check.values, other_check.values)
    return {
        "finding": finding.number,
        "check": check.name,
        "first": check.mean.value,
        "second": other_check.mean.value,
        "first_untrained": _control(finding, check)["untrained"],
        "second_untrained": _control(other, other_check)["untrained"],
        "difference": change.value,
        "ci_low": change.low,
        "ci_high": change.high,
        "images": change.count,
        "verdict": change.verdict,
        "first_verdict": str(finding.judgement),
        "second_verdict": str(other.judgement),
    }


def findings_markdown(findings: Sequence[Finding]) -> str:
    """The table for a README: a line per check."""
    lines = [
        "| | statement | verdict | number | 95 % interval | untrained | wanted | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in finding_rows(findings):
        ends = f"{number_text(row['ci_low'])} to {number_text(row['ci_high'])}"
        reason = f" ({row['reason']})" if row["reason"] else ""
        cells = (
            *(row["finding"], row["quantity"] or row["statement"], f"{row['met']}{reason}"),
            *(number_text(row["value"]), ends if row["check"] else "–"),
            number_text(row["untrained"]),
            *(row["wanted"], row["reference"]),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def number_text(value: object) -> str:
    """Four figures; – for what is not there."""
    if not isinstance(value, float) or not math.isfinite(value):
        return "–"
    return f"{value:.4g}".replace("-", "−")
