"""Pictures of the findings: the sheet, grouping curves, robustness of predictions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from triptych.visualization.evidence import Evidence, gather_evidence
from triptych.visualization.figures.findings import findings_figure
from triptych.visualization.figures.grouping import grouping_figure
from triptych.visualization.figures.perturbation import robustness_figure
from triptych.visualization.findings import (
    Finding,
    Verdict,
    evaluate_findings,
    with_controls,
)
from triptych.visualization.findings_table import finding_metrics, finding_rows
from triptych.visualization.grouping_curves import grouping_curves, grouping_rows
from triptych.visualization.picture import Picture
from triptych.visualization.probe_set import ProbeSet
from triptych.visualization.robustness import known_predictions, robustness_rows

# An untrained network need not see as many large images to show what it does anyway.
_LARGE, _FEW, _SEVERAL = 128, 16, 32


@dataclass(frozen=True)
class FindingsGallery:
    """What was found, as statements, pictures and scalars of a run record."""

    findings: list[Finding]
    pictures: list[Picture]
    metrics: dict[str, dict[str, object]]


def findings_gallery(
    model: nn.Module, probe: ProbeSet, untrained: nn.Module | None = None
) -> FindingsGallery:
    """Statements F1 to F14, grouping by layer and robustness of ``model`` on ``probe``.

    Args:
        untrained: the same model at its initial weights, asked the same of the same images: what
            holds of it too was not learned. Of images of 128 pixels or more it sees the first 16;
            robustness is asked of the first 32 of those.

    Raises:
        ValueError: as `capture`.
    """
    evidence = gather_evidence(model, probe)
    findings = evaluate_findings(evidence)
    control = None
    if untrained is not None:
        control = gather_evidence(untrained, _affordable(probe, _FEW))
        findings = with_controls(findings, evaluate_findings(control))
    answered = any(one.verdict is not Verdict.unanswered for one in findings)
    pictures = [_findings_picture(findings, probe, control)] if answered else []
    grouping = _grouping_picture(evidence, control)
    robust = _robustness_picture(model, evidence)
    pictures += [picture for picture in (grouping, robust) if picture is not None]
    return FindingsGallery(findings, pictures, finding_metrics(findings))


def _affordable(probe: ProbeSet, most: int) -> ProbeSet:
    """All small images, or the first ``most`` large ones."""
    return probe if max(probe.size) < _LARGE else probe.take(range(min(len(probe), most)))


def _findings_picture(
    findings: list[Finding], probe: ProbeSet, control: Evidence | None
) -> Picture:
    rows = finding_rows(findings)
    beside = (
        f" Untrained: the same network at its initial weights, on {len(control.probe)} of the "
        "images; what holds there too was not learned."
        if control is not None
        else ""
    )
    title = "Findings of arXiv 2210.07646, asked of this model"
    guess = " Masks are guessed from the pixels (Otsu)." if probe.estimated else ""
    return Picture(
        name="findings",
        title="Findings",
        caption=(
            f"Means over {len(probe)} images with 95 % t-intervals over images; a number meets its "
            "bound if the whole interval is beyond it, a statement holds if all its numbers do. "
            "Statements and the paper's numbers: arXiv 2210.07646 (ViT-B/16, 21k-pretrained, "
            f"Pascal VOC); bounds where the paper has none are ours.{beside}{guess}"
        ),
        figure=findings_figure(rows, title=title),
        rows=rows,
    )


def _grouping_picture(evidence: Evidence, control: Evidence | None) -> Picture | None:
    """None where no image has two objects."""
    rows = grouping_rows(grouping_curves(evidence, control))
    if not rows:
        return None
    return Picture(
        name="grouping",
        title="Grouping of object tokens by layer",
        caption=(
            "DBSCAN of the object tokens of each image and block, radius from the image itself; "
            f"means over the {len(evidence.probe)} images of the probe set in which two objects "
            "have three tokens or more; bands: 95 % t-intervals of the whole images, all "
            "intervals stand in the table. Lines are broken where the "
            "token grid changes. Grey dashes are controls: object tokens dealt out anew, and the "
            "same network untrained. Images without clusters are left out of the measures that "
            "need them."
        ),
        figure=grouping_figure(rows, title="Grouping of object tokens by layer"),
        rows=rows,
    )


def _robustness_picture(model: nn.Module, evidence: Evidence) -> Picture | None:
    """None for a model without classes."""
    probe, classes = _affordable(evidence.probe, _SEVERAL), evidence.plain.logits.shape[1]
    if classes < 2:
        return None
    known = {key: one[: len(probe)] for key, one in known_predictions(evidence).items()}
    rows = robustness_rows(model, probe, known)
    chance = None if probe.labels is None else 1 / classes
    number = str(rows[0]["number"])
    return Picture(
        name="robustness",
        title="Predictions under dropped and shuffled cells",
        caption=(
            f"{number.capitalize()} on {len(probe)} images of the probe set with 95 % t-intervals, "
            "cells blackened before normalisation (PatchDrop) or shuffled; the same cells for "
            "every model. Dashed: guessing."
        ),
        figure=robustness_figure(rows, chance=chance, title="Robustness of predictions"),
        rows=rows,
    )
