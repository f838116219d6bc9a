"""From one token grid to the next, coarser one: what share each fine token has in a coarse one.

The learned reduction between stages, or of the keys of one layer, is taken for a plain average
over the tokens that it reads.

Shapes: N fine tokens, M coarse tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


@dataclass(frozen=True)
class Reduction:
    """Support of a convolution or merging, in fine tokens; (height, width) each.

    ``ceil`` keeps the last, partial field of a grid that the stride does not divide.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil: bool = False

    def matrix(self, fine: Pair, coarse: Pair) -> Tensor:
        """Share of each of the N fine tokens in each of the M coarse ones, (M, N); rows sum to 1.

        Uniform over the support, clipped at the border of the grid.

        Raises:
            ValueError: this reduction takes ``fine`` to another grid than ``coarse``.
        """
        eye = torch.eye(fine[0] * fine[1]).view(-1, 1, *fine)
        pooled = F.avg_pool2d(
            eye,
            self.kernel,
            self.stride,
            self.padding,
            ceil_mode=self.ceil,
            count_include_pad=False,
        )
        reached = (int(pooled.shape[2]), int(pooled.shape[3]))
        if reached != coarse:
            raise ValueError(
                f"the reduction takes a grid of {fine[0]}x{fine[1]} to {reached[0]}x{reached[1]}, "
                f"not to {coarse[0]}x{coarse[1]}"
            )
        shares_MN = pooled.flatten(1).T
        return shares_MN / shares_MN.sum(1, keepdim=True)


def pooling_bins(fine: Pair, bins: int) -> Tensor:
    """Shares (bins², N) of adaptive average pooling to ``bins`` x ``bins``, as in linear PVT v2."""
    eye = torch.eye(fine[0] * fine[1]).view(-1, 1, *fine)
    return F.adaptive_avg_pool2d(eye, bins).flatten(1).T
