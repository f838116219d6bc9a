"""Where something stands out from the border of an image, for data without object masks.

Shapes: B images, C channels, Y and X pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional as F


def estimated_objects(pixels: Tensor) -> Tensor:
    """Bool (B, Y, X): pixels of ``pixels`` (B, C, Y, X) that differ from the border of the image.

    Distance from the median colour of the border, cut at Otsu's threshold. Good on items before an
    even background, a guess on photographs; an image of one colour has no object.
    """
    masks = []
    for image in pixels.detach().float().cpu():
        edge = torch.cat((image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]), 1)
        distance = (image - edge.median(1).values[:, None, None]).square().sum(0).sqrt().numpy()
        if np.ptp(distance) == 0:
            masks.append(torch.zeros(image.shape[1:], dtype=torch.bool))
        else:
            masks.append(torch.from_numpy(distance > threshold_otsu(distance)))
    return torch.stack(masks).to(pixels.device)


def covered_share(objects: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each token's region that bool ``objects`` (B, Y, X) cover, (B, rows·cols)."""
    return F.adaptive_avg_pool2d(objects[:, None].float(), grid).flatten(1)
