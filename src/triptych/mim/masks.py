"""Random masks of mask units: which part of each image the model does not see.

Shapes: B samples, L mask units in row-major order. True = hidden. Every sample keeps
floor(L · (1 - ratio)) units, which is the same as hiding ceil(L · ratio) of them: GreenMIM and
SimMIM round alike. Where L · (1 - ratio) is whole but for the error of floating point, it counts
as whole: 0.9 of 10 units leaves one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.seeding import uniforms

_ROUNDING = 1e-9


def count_visible(num_units: int, ratio: float) -> int:
    """Number of units that stay visible, floor(num_units · (1 - ratio)).

    Raises:
        ValueError: ``ratio`` is outside [0, 1) or leaves no unit visible.
    """
    if num_units < 1:
        raise ValueError(f"there must be at least 1 mask unit, got {num_units}")
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio must be at least 0 and below 1, got {ratio}")
    visible = math.floor(num_units * (1 - ratio) + _ROUNDING)
    if visible < 1:
        # Rounded down, so that the number in the message is legal as it is printed.
        largest = math.floor((1 - 1 / num_units) * 10_000) / 10_000
        raise ValueError(
            f"mask ratio {ratio} leaves none of the {num_units} mask units visible; the largest "
            f"legal ratio is {largest}"
        )
    return visible


def mask_from_noise(noise_BL: Tensor, ratio: float) -> Tensor:
    """Hide all but the units with the least noise (as MAE and GreenMIM do), bool (B, L).

    Raises:
        ValueError: as :func:`count_visible`.
    """
    visible = count_visible(noise_BL.shape[1], ratio)
    order_BL = torch.argsort(noise_BL, dim=1, stable=True)
    mask_BL = torch.ones(noise_BL.shape, dtype=torch.bool, device=noise_BL.device)
    return mask_BL.scatter_(1, order_BL[:, :visible], False)


def restore_order(noise_BL: Tensor) -> Tensor:
    """Rank of each unit's noise in its sample, int64 (B, L): MAE's ``ids_restore``."""
    order_BL = torch.argsort(noise_BL, dim=1, stable=True)
    return torch.argsort(order_BL, dim=1)


def random_unit_mask(
    num_units: int,
    ratio: float,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    per_sample: bool = True,
) -> Tensor:
    """Draw masks, bool (batch_size, num_units), True = hidden.

    With ``per_sample=False`` all samples have the same mask (as in GreenMIM's code).

    Raises:
        ValueError: as :func:`count_visible`.
    """
    rows = batch_size if per_sample else 1
    device = generator.device if generator is not None else None
    noise_BL = torch.rand(rows, num_units, generator=generator, device=device)
    return mask_from_noise(noise_BL, ratio).expand(batch_size, -1).contiguous()


def sample_noise(
    num_units: int, *, seed: int, epoch: int, indices: Tensor | Sequence[int]
) -> Tensor:
    """Noise (B, num_units), uniform in [0, 1), float64: a function of its arguments alone.

    Args:
        num_units: mask units L of an image.
        seed: of the run.
        epoch: counts from 0.
        indices: number of each sample in the data set, B integers.
    """
    numbers = torch.as_tensor(indices).tolist()
    return torch.from_numpy(uniforms(seed, [epoch] * len(numbers), numbers, num_units))


def sample_masks(
    num_units: int,
    ratio: float,
    *,
    seed: int,
    epoch: int,
    indices: Tensor | Sequence[int],
) -> Tensor:
    """Masks (B, num_units), True = hidden, of the samples ``indices`` in ``epoch``.

    A mask depends on (seed, epoch, index) alone: not on the batch, the worker or the device.

    Raises:
        ValueError: as :func:`count_visible`.
    """
    noise_BL = sample_noise(num_units, seed=seed, epoch=epoch, indices=indices)
    return mask_from_noise(noise_BL, ratio)
