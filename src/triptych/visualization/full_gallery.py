"""Everything that is asked of a probe set, as pictures and scalars."""

from __future__ import annotations

from torch import nn

from triptych.visualization.embedding import embedding_gallery
from triptych.visualization.faithfulness_gallery import faithfulness_gallery
from triptych.visualization.findings_gallery import FindingsGallery, findings_gallery
from triptych.visualization.probe_set import ProbeSet


def full_gallery(
    model: nn.Module, probe: ProbeSet, untrained: nn.Module | None = None
) -> FindingsGallery:
    """Findings, grouping, robustness, faithfulness and token embeddings of ``model``.

    Args:
        untrained: the same model with random weights, as a control.

    Raises:
        ValueError: as `capture`.
    """
    found = findings_gallery(model, probe, untrained)
    faithful = faithfulness_gallery(model, probe.images())
    points = embedding_gallery(model, probe)
    pictures = [*found.pictures, *(one for one in (faithful, points) if one is not None)]
    return FindingsGallery(found.findings, pictures, found.metrics)
