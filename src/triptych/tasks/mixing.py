"""Mixup and cutmix between neighbours of a batch.

Sample 2k is mixed with sample 2k + 1, and both take the same ratio or box as the rest of the
batch. What becomes of a sample thus does not depend on how many processes share the batch, as
long as each has whole pairs; batches are in random order, so neighbours are random partners.
The last sample of an odd batch stays as it is.

Shapes: B batch, C image channels, H and W image size, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class PairMixing:
    """Mixes a batch by mixup (arXiv 1710.09412) or cutmix (1905.04899), each half of the time.

    Args:
        num_classes: K.
        mixup: alpha of the Beta distribution of mixup's ratio; 0 leaves it out.
        cutmix: alpha of the Beta distribution of the area that cutmix keeps; 0 leaves it out.

    Raises:
        ValueError: both are 0.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float) -> None:
        if mixup <= 0 and cutmix <= 0:
            raise ValueError(f"nothing is to be mixed with mixup={mixup} and cutmix={cutmix}")
        self.num_classes, self.mixup, self.cutmix = num_classes, mixup, cutmix

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and their label distributions (B, K); draws from torch's generator."""
        partner_B = partners(len(images_BCHW)).to(images_BCHW.device)
        cut = self.cutmix > 0 and (self.mixup <= 0 or float(torch.rand(())) < 0.5)
        ratio = _beta(self.cutmix if cut else self.mixup)
        other = images_BCHW[partner_B]
        if cut:
            images_BCHW, ratio = _pasted(images_BCHW, other, ratio)
        else:
            images_BCHW = torch.lerp(other, images_BCHW, ratio)
        target_BK = F.one_hot(labels_B, self.num_classes).to(images_BCHW.dtype)
        return images_BCHW, torch.lerp(target_BK[partner_B], target_BK, ratio)


def partners(count: int) -> Tensor:
    """The index of each sample's partner, (count,)."""
    places = torch.arange(count)
    return torch.where(places ^ 1 < count, places ^ 1, places)


def _beta(alpha: float) -> float:
    # Two gamma variates on the CPU: one number for all processes and devices.
    concentration = torch.tensor([alpha, alpha], dtype=torch.float64)
    return float(torch._sample_dirichlet(concentration)[0])


def _pasted(images_BCHW: Tensor, other: Tensor, ratio: float) -> tuple[Tensor, float]:
    """A box of the partner, of a share 1 − ratio of the area before it is cut off at the border."""
    height, width = images_BCHW.shape[2:]
    share = math.sqrt(1.0 - ratio)
    top, bottom = _span(height, share)
    left, right = _span(width, share)
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)


def _span(size: int, share: float) -> tuple[int, int]:
    centre, half = int(torch.randint(size, ())), int(size * share) // 2
    return max(0, centre - half), min(size, centre + half)
