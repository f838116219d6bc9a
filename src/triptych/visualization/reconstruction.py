"""What a masked-image model put into the hidden part of an image, in the units of the image.

Shapes: B images, C channels, Y and X pixels, R x S mask units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Of the released code's per-patch target normalisation.
_EPS = 1e-6


@dataclass(frozen=True)
class Reconstruction:
    """Everything (B, C, Y, X) in the units of ``image``, except ``hidden``.

    Attributes:
        image: the input.
        masked: the input with its hidden pixels at ``fill``.
        pasted: the prediction where hidden, the input where visible.
        target: what the hidden pixels should have been.
        error: |pasted - target|, averaged over channels, 0 where visible: (B, 1, Y, X).
        hidden: bool (B, 1, Y, X), True where the model did not see the pixel.
    """

    image: Tensor
    masked: Tensor
    pasted: Tensor
    target: Tensor
    error: Tensor
    hidden: Tensor


def hidden_pixels(mask: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Spread ``mask`` (B, R, S), True = hidden, over the pixels: (B, 1, Y, X).

    Raises:
        ValueError: not boolean with three dimensions, or units that do not divide the image.
    """
    if mask.dtype != torch.bool or mask.ndim != 3:
        raise ValueError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; "
            "give torch.bool (images, rows, columns) of mask units, True where hidden"
        )
    rows, cols = mask.shape[1:]
    if image_size[0] % rows or image_size[1] % cols:
        raise ValueError(
            f"a mask of {rows}x{cols} units does not divide an image of "
            f"{image_size[0]}x{image_size[1]} pixels; give units of whole pixels"
        )
    tall = mask.repeat_interleave(image_size[0] // rows, dim=1)
    return tall.repeat_interleave(image_size[1] // cols, dim=2).unsqueeze(1)


def undo_patch_normalisation(predicted: Tensor, target: Tensor, patch: int) -> Tensor:
    """Bring a per-patch normalised prediction back to pixels with the target patches' statistics.

    The inverse of (target - mean) / sqrt(unbiased variance + 1e-6) over the ``patch`` x ``patch``
    pixels of all channels (GreenMIM, norm_pix).

    Raises:
        ValueError: ``patch`` does not divide the image.
    """
    height, width = target.shape[-2:]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"patches of {patch} pixels do not divide an image of {height}x{width}; "
            "give the side of the patches of the loss"
        )
    patches = F.unfold(target.float(), patch, stride=patch)
    mean = patches.mean(1, keepdim=True)
    std = (patches.var(1, keepdim=True) + _EPS).sqrt()
    restored = F.unfold(predicted.float(), patch, stride=patch) * std + mean
    return F.fold(restored, (height, width), patch, stride=patch)


def reconstruct(
    images: Tensor,
    masked: Tensor,
    predicted: Tensor,
    *,
    target: Tensor | None = None,
    normalised_patch: int | None = None,
    fill: float = 0.5,
) -> Reconstruction:
    """Compare a prediction with what was hidden.

    Args:
        images: (B, C, Y, X), pixels in [0, 1].
        masked: bool (B, R, S) mask units in rows and columns, True = hidden.
        predicted: (B, C, Y, X) in the units of ``images``, or per-patch normalised.
        target: what to predict where it is not the images themselves.
        normalised_patch: side in pixels of the patches by which the prediction is normalised.
        fill: grey level of hidden pixels.

    Raises:
        ValueError: shapes that do not belong together.
    """
    target = images if target is None else target
    _check_shapes(images, masked, predicted, target)
    images, target = images.detach().float(), target.detach().float()
    predicted = predicted.detach().float()
    hidden = hidden_pixels(masked, (images.shape[-2], images.shape[-1]))
    if normalised_patch is not None:
        predicted = undo_patch_normalisation(predicted, target, normalised_patch)
    pasted = predicted.where(hidden, images)
    error = ((pasted - target).abs() * hidden).mean(1, keepdim=True)
    return Reconstruction(
        image=images,
        masked=images.masked_fill(hidden, fill),
        pasted=pasted,
        target=target,
        error=error,
        hidden=hidden,
    )


def _check_shapes(images: Tensor, masked: Tensor, predicted: Tensor, target: Tensor) -> None:
    for name, tensor in (("prediction", predicted), ("target", target)):
        if tensor.shape != images.shape:
            raise ValueError(
                f"the {name} has shape {tuple(tensor.shape)} and the images "
                f"{tuple(images.shape)}; give both as (images, channels, height, width)"
            )
    if len(masked) != len(images):
        raise ValueError(
            f"{len(masked)} masks for {len(images)} images; give one mask for each image"
        )


def reconstruction_rows(reconstruction: Reconstruction) -> list[dict[str, object]]:
    """One row per image; errors over hidden pixels only, nan where nothing was hidden."""
    rows: list[dict[str, object]] = []
    difference = (reconstruction.pasted - reconstruction.target) * reconstruction.hidden
    channels = reconstruction.image.shape[1]
    for image, hidden in enumerate(reconstruction.hidden):
        values = hidden.sum() * channels
        rows.append(
            {
                "image": image,
                "hidden_fraction": hidden.float().mean().item(),
                "mean_absolute_error": (difference[image].abs().sum() / values).item(),
                "mean_squared_error": (difference[image].square().sum() / values).item(),
            }
        )
    return rows
