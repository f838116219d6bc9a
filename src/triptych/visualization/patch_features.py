"""Principal components of patch features, fitted over several images at once.

Shapes: B images, N grid tokens, C channels, K components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchComponents:
    """Attributes:
    mean: (C,), of all patches of all images.
    directions: (K, C), unit length; the largest entry of each is positive, which fixes its sign.
    singular: (K,), singular values of the centred features, largest first.
    scores: (B, N, K).
    """

    mean: Tensor
    directions: Tensor
    singular: Tensor
    scores: Tensor

    def of(self, features: Tensor) -> Tensor:
        """Scores (B, N, K) of other ``features`` (B, N, C) on the same directions."""
        return (features - self.mean) @ self.directions.T

    def colours(self, grid: tuple[int, int]) -> Tensor:
        """The first three components as RGB in [0, 1], (B, rows, cols, 3).

        One scale for all images: the 2nd to the 98th percentile of each component.
        """
        three = self.scores[..., :3]
        ends = torch.quantile(three.flatten(0, 1), torch.tensor([0.02, 0.98]).to(three), dim=0)
        span = (ends[1] - ends[0]).clamp_min(torch.finfo(three.dtype).tiny)
        return ((three - ends[0]) / span).clamp(0, 1).unflatten(1, grid)


def patch_components(features: Tensor, components: int = 3) -> PatchComponents:
    """Principal components of ``features`` (B, N, C), grid tokens only.

    Raises:
        ValueError: fewer patches or channels than ``components``.
    """
    flat = features.detach().to(torch.promote_types(features.dtype, torch.float32)).flatten(0, 1)
    most = min(flat.shape)
    if not 1 <= components <= most:
        raise ValueError(
            f"components={components} must be 1 to {most} for {flat.shape[0]} patches of "
            f"{flat.shape[1]} channels"
        )
    mean = flat.mean(0)
    _, singular, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    scores = ((flat - mean) @ directions.T).unflatten(0, features.shape[:2])
    return PatchComponents(mean, directions, singular[:components], scores)
