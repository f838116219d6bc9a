"""Position-weighted sums over a long sequence, at a cost of length times the kernel's width.

With a negative factor of the squared offset, a head's position weights are a Gaussian around one
offset. Sources whose weight is below exp(-36) of a target's largest change no digit even of
float64, so each block of targets needs only the sources near it.

Shapes: B batch, T tokens, H heads, D channels a head, M 1 or B (visible sets), G = B / M samples
that share one, W sources of a block, V targets of a block, J blocks, E = 2·G·D moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# exp(-36) = 2e-16, the rounding of float64.
NEGLIGIBLE = 36.0
SHORTEST_BLOCK = 64
# Score of an absent source: finite, so that a row without any visible token gives 0 and not NaN.
ABSENT = -1e30


@dataclass(frozen=True)
class Band:
    """How far sources matter (``radius`` tokens to either side), in blocks of ``block`` targets."""

    radius: int
    block: int

    @property
    def window(self) -> int:
        """Sources that a block of targets looks at."""
        return self.block + 2 * self.radius


def band_of(weight_H3: Tensor, length: int) -> Band | None:
    """The band that holds every weight of a sequence, or None where all pairs cost no more.

    It reads ``weight_H3`` on the host, so it is for weights that lie there: None for others, and
    while a graph is traced.
    """
    if weight_H3.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return None
    reach = 0.0
    for linear, _, squared in weight_H3.detach().tolist():
        if not squared < 0:
            return None
        reach = max(reach, abs(linear / (2 * squared)) + math.sqrt(NEGLIGIBLE / -squared))
    if not reach < length:
        return None
    radius = math.ceil(reach)
    band = Band(radius, max(SHORTEST_BLOCK, radius))
    return band if 2 * band.window <= length else None


def in_one_piece(visible_MT: Tensor) -> bool:
    """Whether each set's visible tokens are one interval, as the tokens of a padded sequence are.

    Only then does a target in it have its heaviest source within the band.
    """
    starts_MT = visible_MT & ~pad(visible_MT[:, :-1], (1, 0), value=False)
    return bool((starts_MT.sum(1) <= 1).all())


def smooth_banded(
    x_BTHD: Tensor, weight_H3: Tensor, band: Band, visible_MT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """E[x] and E[x²] around every token of a sequence, both like x; absent targets get any value.

    Args:
        x_BTHD: the tokens, 0 where absent.
        weight_H3: position weights, in x's dtype.
        band: of these weights, from :func:`band_of`.
        visible_MT: which tokens are sources, each row :func:`in_one_piece`; all if None.
    """
    batch, length, heads, features = x_BTHD.shape
    blocks = -(-length // band.block)
    after = blocks * band.block - length + band.radius
    if visible_MT is None:
        visible_MT = torch.ones(1, length, dtype=torch.bool, device=x_BTHD.device)
    sets = len(visible_MT)
    x_MHTGD = x_BTHD.view(sets, -1, length, heads, features).permute(0, 3, 2, 1, 4)
    moments_MHTE = torch.stack((x_MHTGD, x_MHTGD.square()), 3).flatten(3)
    padded_MHTE = pad(moments_MHTE, (0, 0, band.radius, after))
    moments_MHJEW = padded_MHTE.unfold(2, band.window, band.block)
    sources_MJW = pad(visible_MT, (band.radius, after)).unfold(1, band.window, band.block)
    scores_HWV = _scores(weight_H3, band)
    absent_M1JW1 = ~sources_MJW[:, None, :, :, None]
    kernel_MHJWV = scores_HWV[:, None].masked_fill(absent_M1JW1, ABSENT).softmax(3)
    both_MHJEV = moments_MHJEW @ kernel_MHJWV
    both_MHTE = both_MHJEV.mT.flatten(2, 3)[:, :, :length]
    both = both_MHTE.unflatten(3, (2, batch // sets, features)).permute(3, 0, 4, 2, 1, 5)
    mean_BTHD, square_BTHD = both.reshape(2, *x_BTHD.shape).unbind(0)
    return mean_BTHD, square_BTHD


def _scores(weight_H3: Tensor, band: Band) -> Tensor:
    """Scores (H, W, V) between the sources and targets of any block; the same for each."""
    position = torch.arange(band.window, dtype=weight_H3.dtype, device=weight_H3.device)
    target_V = position[: band.block] + band.radius
    offset_WV = target_V - position[:, None]
    along_H, _, squared_H = weight_H3.unbind(1)
    return along_H[:, None, None] * offset_WV + squared_H[:, None, None] * offset_WV.square()
