"""The pictures of a run: what a trained classifier looks at, what a MIM model fills in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from triptych.visualization.attention_distance import attention_distances, distance_rows
from triptych.visualization.capture import Capture, capture
from triptych.visualization.display import unnormalise
from triptych.visualization.figures import (
    distance_figure,
    magnitude_figure,
    reconstruction_figure,
    rollout_figure,
    variation_figure,
)
from triptych.visualization.figures.attention import relevance_rows
from triptych.visualization.picture import Picture, save_pictures
from triptych.visualization.reconstruction import reconstruct, reconstruction_rows
from triptych.visualization.relevance_gallery import relevance_gallery
from triptych.visualization.rollout import image_relevance
from triptych.visualization.style import norm_label
from triptych.visualization.token_magnitude import (
    TokenMagnitude,
    magnitude_rows,
    token_magnitudes,
)
from triptych.visualization.view_gallery import view_gallery

__all__ = [
    "Picture",
    "brief_gallery",
    "captured_gallery",
    "classifier_gallery",
    "gallery_metrics",
    "model_gallery",
    "reconstruction_gallery",
    "save_pictures",
]

BRIEF_IMAGES = 4
_RECONSTRUCTION_CAPTION = (
    "Input, what the model saw (hidden mask units in grey), its prediction pasted into the "
    "hidden units, the target, and the absolute error averaged over channels where pixels "
    "were hidden (1 = full pixel range; visible pixels count as 0)."
)


def classifier_gallery(
    model: nn.Module, images: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> list[Picture]:
    """Attention, norms, views and relevance of ``model`` on ``images``.

    One forward pass, and two with gradients for the relevance of classes.

    Args:
        model: a backbone that `capture` knows, with any norms.
        images: (B, C, Y, X) as the model takes them, 1 or 3 channels. All images count in the
            numbers; the rollout figure shows each, so give about eight.
        mean, std: the normalisation of the images, one number for each channel.

    Raises:
        ValueError: as `capture` and `unnormalise`.
    """
    pixels = unnormalise(images, mean, std)
    return model_gallery(model, capture(model, images), images, pixels)


def model_gallery(
    model: nn.Module, captured: Capture, images: Tensor, pixels: Tensor
) -> list[Picture]:
    """The same pictures from a capture made beforehand and the images as [0, 1] pixels too."""
    return [
        *captured_gallery(captured, pixels),
        relevance_gallery(model, images, pixels),
        *view_gallery(model, captured, images, pixels),
    ]


def brief_gallery(
    model: nn.Module, captured: Capture, images: Tensor, pixels: Tensor, *, classes: bool = True
) -> list[Picture]:
    """What costs little to draw and says most: about half a second for small images on a CPU.

    ``class_relevance`` (with rollout as its first map) of the first images, or ``rollout`` where
    ``classes`` is false because the model predicts none; ``attention_distance`` and
    ``token_variation`` of all.
    """
    few = slice(BRIEF_IMAGES)
    return [
        relevance_gallery(model, images[few], pixels[few])
        if classes
        else _rollout_picture(captured, pixels),
        _distance_picture(captured),
        _variation_picture(token_magnitudes(captured)),
    ]


def captured_gallery(captured: Capture, pixels: Tensor) -> list[Picture]:
    """Rollout, attention distance and token magnitude, which need the capture alone."""
    magnitudes = token_magnitudes(captured)
    return [
        _rollout_picture(captured, pixels),
        _distance_picture(captured),
        _magnitude_picture(magnitudes),
        _variation_picture(magnitudes),
    ]


def reconstruction_gallery(
    images: Tensor,
    masked: Tensor,
    predicted: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalised_patch: int | None = None,
    error_limit: float | None = None,
) -> Picture:
    """Input, masked input, prediction pasted, target and |error|, one row for each image.

    Args:
        images: (B, C, Y, X), normalised by ``mean`` and ``std``, or [0, 1] pixels without them.
        masked: bool (B, rows, cols) of mask units, True = hidden.
        predicted: (B, C, Y, X) in the units of ``images``; per-patch normalised values where
            ``normalised_patch`` gives the side of those patches in pixels.
        error_limit: top of the error scale, to compare galleries.

    Raises:
        ValueError: shapes that do not belong together, or a mean without std.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std undo one normalisation; give both or neither")
    shift = [0.0] * images.shape[1] if mean is None else mean
    scale = [1.0] * images.shape[1] if std is None else std
    normalised = reconstruct(images, masked, predicted, normalised_patch=normalised_patch)
    compared = reconstruct(
        unnormalise(images, shift, scale), masked, unnormalise(normalised.pasted, shift, scale)
    )
    return Picture(
        name="reconstruction",
        title="Reconstruction of hidden pixels",
        caption=_RECONSTRUCTION_CAPTION,
        figure=reconstruction_figure(
            compared, error_limit=error_limit, title="Reconstruction of hidden pixels"
        ),
        rows=reconstruction_rows(compared),
    )


def gallery_metrics(captured: Capture) -> dict[str, dict[str, object]]:
    """Scalars of a capture for the run record, name to {"value", "unit"}, means over the images.

    Mean attention distance in pixels and entropy by block, their means, and for each norm site
    the CV of token magnitudes after the norm over before it.
    """
    metrics: dict[str, dict[str, object]] = {}
    distances = attention_distances(captured)
    for layer, block in enumerate(distances, start=1):
        distance = block.raw_pixels.mean().item()
        metrics[f"attention/distance/block{layer}"] = {"value": distance, "unit": "pixels"}
        entropy = block.entropy.mean().item()
        metrics[f"attention/entropy/block{layer}"] = {"value": entropy, "unit": "nats"}
    overall = sum(block.raw_pixels.mean().item() for block in distances) / len(distances)
    metrics["attention/distance/mean"] = {"value": overall, "unit": "pixels"}
    magnitudes = token_magnitudes(captured)
    for one in magnitudes:
        name = f"tokens/cv_ratio/block{one.layer}_{one.site}"
        metrics[name] = {"value": one.cv_ratio, "unit": "ratio"}
    mean_ratio = sum(one.cv_ratio for one in magnitudes) / len(magnitudes)
    metrics["tokens/cv_ratio/mean"] = {"value": mean_ratio, "unit": "ratio"}
    return metrics


def _rollout_picture(captured: Capture, pixels: Tensor) -> Picture:
    relevance = image_relevance(captured)
    first = captured.blocks[0]
    windowed = first.window != first.grid
    shifts = [block.shift for block in captured.blocks if block.stage == 0 and any(block.shift)]
    tall, wide = first.stride
    window = (first.window[0] * tall, first.window[1] * wide) if windowed else None
    shift = (shifts[0][0] * tall, shifts[0][1] * wide) if shifts else None
    reader = "the class token" if captured.reads_class_token else "the mean over output tokens"
    lines = (
        " Lines mark the windows of the first stage (dotted: shifted), which shape the map."
        if windowed
        else ""
    )
    return Picture(
        name="rollout",
        title="Attention rollout",
        caption=(
            f"Share of each image region in {reader} by attention rollout (mean over heads, skip "
            "connections as identity), in multiples of an even share; one colour scale for all "
            f"images.{lines}"
        ),
        figure=rollout_figure(
            pixels, relevance, window=window, shift=shift, title="Attention rollout"
        ),
        rows=relevance_rows(relevance),
    )


def _distance_picture(captured: Capture) -> Picture:
    rows = distance_rows(captured)
    kinds = {norm.kind for block in captured.blocks for norm in block.norms}
    panel = " and ".join(sorted(norm_label(kind) for kind in kinds)) or "blocks"
    unit = "pixels" if captured.stages > 1 else "steps"
    return Picture(
        name="attention_distance",
        title="Mean attention distance",
        caption=(
            "Mean distance between a token and what it attends to, by block and head, averaged "
            f"over {len(captured.output)} images; the mass on prefix tokens is left out. Dashed: "
            "equal attention to every token within reach."
        ),
        figure=distance_figure({panel: rows}, unit=unit, title="Mean attention distance"),
        rows=rows,
    )


def _magnitude_picture(magnitudes: Sequence[TokenMagnitude]) -> Picture:
    first, last = magnitudes[0].layer, magnitudes[-1].layer
    chosen = [one for one in magnitudes if one.layer in (first, (first + last + 1) // 2, last)]
    return Picture(
        name="token_magnitude",
        title="Token magnitudes before and after norms",
        caption=(
            "L2 norm of each head's slice of each token of image 0, before and after norms of the "
            "first, middle and last block; one colour scale for each pair. CV: standard deviation "
            "over mean across tokens, averaged over heads. The table holds every norm, averaged "
            "over images."
        ),
        figure=magnitude_figure(chosen, title="Token magnitudes"),
        rows=magnitude_rows(tuple(magnitudes)),
    )


def _variation_picture(magnitudes: Sequence[TokenMagnitude]) -> Picture:
    return Picture(
        name="token_variation",
        title="Variation of token magnitudes",
        caption=(
            "Coefficient of variation of token L2 norms before and after each norm, averaged over "
            "images; dots are heads, lines their mean. A norm that makes tokens alike has a lower "
            "line after than before."
        ),
        figure=variation_figure(magnitudes, title="Variation of token magnitudes"),
        rows=[
            {
                "layer": one.layer,
                "block": one.block,
                "site": one.site,
                "norm": one.kind,
                "cv_before": one.cv_before.mean().item(),
                "cv_after": one.cv_after.mean().item(),
                "cv_ratio": one.cv_ratio,
            }
            for one in magnitudes
        ],
    )
