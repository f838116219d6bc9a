"""How relevance passes back through the operations of a transformer (LRP with α = 1, β = 0).

Each rule shares the relevance R of an output out to the inputs in proportion to what they gave to
it (arXiv 2012.09838, section 3; constants of the released code). Sums are taken image by image.

Shapes: B images, D inputs and E outputs of a layer, C channels, Y and X pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-9


def share(relevance: Tensor, total: Tensor) -> Tensor:
    """``relevance`` / ``total``, 0 where ``total`` is 0."""
    safe = total.clamp_min(_EPSILON) + total.clamp_max(_EPSILON)
    safe = torch.where(safe == 0, torch.full_like(safe, _EPSILON), safe)
    return relevance / safe * (total != 0)


def through_linear(layer: nn.Linear, x: Tensor, relevance: Tensor) -> Tensor:
    """To the inputs (…, D) of relevance (…, E): products above 0 count, the bias does not."""
    weight = layer.weight
    signs = ((x.clamp_min(0), weight.clamp_min(0)), (x.clamp_max(0), weight.clamp_max(0)))
    total = sum((F.linear(part, own) for part, own in signs), torch.zeros_like(relevance))
    each = share(relevance, total)
    return sum((part * (each @ own) for part, own in signs), torch.zeros_like(x))


def through_product(
    equation: str, first: Tensor, second: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """To both factors of ``einsum(equation, first, second)``, half to each."""
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    each = share(relevance, torch.einsum(equation, first, second))
    to_first = first * torch.einsum(f"{out},{right}->{left}", each, second)
    to_second = second * torch.einsum(f"{out},{left}->{right}", each, first)
    return to_first / 2, to_second / 2


def through_sum(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """To both summands (B, …), scaled so that an image's relevance stays what it was."""
    each = share(relevance, first + second)
    parts = first * each, second * each
    sums = [part.flatten(1).sum(1).view(-1, *[1] * (part.ndim - 1)) for part in parts]
    whole = relevance.flatten(1).sum(1).view_as(sums[0])
    size = sums[0].abs() + sums[1].abs()
    scaled = [
        part * share(share(own.abs(), size) * whole, own)
        for part, own in zip(parts, sums, strict=True)
    ]
    return scaled[0], scaled[1]


def through_copies(x: Tensor, *relevances: Tensor) -> Tensor:
    """To what was used several times over."""
    return x * sum((share(one, x) for one in relevances), torch.zeros_like(x))


def through_pixels(layer: nn.Conv2d, images: Tensor, relevance: Tensor) -> Tensor:
    """To pixels (B, C, Y, X) of the relevance of patches, by the rule for bounded inputs (z^B).

    The bounds are the least and the greatest value of each image.
    """
    low = images.amin((1, 2, 3), keepdim=True).expand_as(images)
    high = images.amax((1, 2, 3), keepdim=True).expand_as(images)
    weight = layer.weight
    parts = ((images, weight), (-low, weight.clamp_min(0)), (-high, weight.clamp_max(0)))
    total = sum(
        (F.conv2d(part, own, stride=layer.stride) for part, own in parts),
        torch.full_like(relevance, _EPSILON),
    )
    each = relevance / total
    return sum(
        (part * F.conv_transpose2d(each, own, stride=layer.stride) for part, own in parts),
        torch.zeros_like(images),
    )
