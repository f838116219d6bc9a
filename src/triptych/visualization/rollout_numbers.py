"""Numbers of a rollout that tell where tokens look: at objects, everywhere, all at the same.

Shapes: B images, L blocks, T tokens of a block, M patches of the first grid, O objects.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from triptych.visualization.capture import Capture
from triptych.visualization.object_tokens import COVERAGE, coverage
from triptych.visualization.rollout import relevance_of_head, rollout_to_input

ROLLOUT_NUMBERS = (
    *("own_object_ratio", "background_ratio", "head_ratio"),
    *("effective_share", "row_correlation"),
)


def rollout_numbers(captured: Capture, instances: Tensor) -> dict[str, np.ndarray]:
    """Each (B, L), NaN where an image has no object or no background patch.

    ``own_object_ratio``: weight of a patch of the token's own object over that of another patch,
    summed over object tokens first; ``background_ratio``: the same of background tokens and all
    objects; ``head_ratio``: of what the head reads; ``effective_share``: 1 / Σp² of a token over
    the number of patches, averaged over tokens; ``row_correlation``: mean correlation of two
    tokens' rows. ``head_rows`` is (B, L, M).

    Args:
        captured: with attention and all blocks.
        instances: uint8 (B, Y, X), 0 for background and o + 1 for object o.

    Raises:
        ValueError: as `rollout_to_input`.
    """
    steps = rollout_to_input(captured)
    grids = {block.grid for block in captured.blocks}
    owners = {grid: [_owners(one, grid) for one in instances] for grid in grids}
    owners_BM = owners[captured.blocks[0].grid]
    shape = (len(instances), len(steps))
    numbers = {name: np.full(shape, math.nan) for name in ROLLOUT_NUMBERS}
    rows = []
    for layer, (step_BTM, block) in enumerate(zip(steps, captured.blocks, strict=True)):
        prefix = block.prefix_tokens
        shares_BTM = step_BTM[:, prefix:, captured.prefix_tokens :].double().cpu()
        late = captured.prefix_tokens - prefix
        read_BM = _head_row(step_BTM, captured, late).double().cpu()
        rows.append(read_BM)
        for image, owner_M in enumerate(owners_BM):
            found = _of_image(shares_BTM[image], owners[block.grid][image], owner_M)
            on_M = owner_M >= 0
            found["head_ratio"] = _ratio(read_BM[image], on_M)
            for name, value in found.items():
                numbers[name][image, layer] = value
    return numbers | {"head_rows": torch.stack(rows, 1).numpy()}


def _head_row(step_BTM: Tensor, captured: Capture, late: int) -> Tensor:
    """(B, M): the class token's row where there is one by now, else the mean over grid tokens."""
    if captured.reads_class_token and late:
        return step_BTM[:, :, captured.prefix_tokens :].mean(1)
    return relevance_of_head(step_BTM, captured).flatten(1)


def _owners(instances_YX: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T,), the object that covers most of each token (40 % at least); -1 for none."""
    count = int(instances_YX.max())
    tokens = grid[0] * grid[1]
    if count == 0 or instances_YX.shape[0] % grid[0] or instances_YX.shape[1] % grid[1]:
        return torch.full((tokens,), -1)
    numbers = torch.arange(1, count + 1, dtype=instances_YX.dtype)
    share_OT = coverage(instances_YX[None] == numbers[:, None, None], grid)
    largest_T, owner_T = share_OT.max(0)
    return torch.where(largest_T >= COVERAGE, owner_T, -1)


def _of_image(shares_TM: Tensor, token_T: Tensor, patch_M: Tensor) -> dict[str, float]:
    total_T1 = shares_TM.sum(1, keepdim=True)
    p_TM = shares_TM / total_T1.clamp_min(1e-300)
    on_object, beside = token_T >= 0, token_T < 0
    own_TM = token_T[:, None] == patch_M[None]
    inside = p_TM[on_object]
    own = own_TM[on_object]
    own_weight = _mean_where(inside, own)
    other_weight = _mean_where(inside, ~own)
    return {
        "own_object_ratio": _quotient(own_weight, other_weight),
        "background_ratio": _ratio(p_TM[beside].sum(0), patch_M >= 0),
        "effective_share": float((1 / p_TM.square().sum(1)).mean()) / p_TM.shape[1],
        "row_correlation": _mean_correlation(p_TM),
    }


def _mean_where(values_TM: Tensor, chosen_TM: Tensor) -> float:
    """Mean over tokens of the mean over their chosen patches."""
    count_T = chosen_TM.sum(1)
    kept = count_T > 0
    if not bool(kept.any()):
        return math.nan
    return float(((values_TM * chosen_TM).sum(1)[kept] / count_T[kept]).mean())


def _ratio(weights_M: Tensor, on_M: Tensor) -> float:
    """Mean weight of patches on objects over mean weight of the others."""
    if not bool(on_M.any()) or bool(on_M.all()):
        return math.nan
    return _quotient(float(weights_M[on_M].mean()), float(weights_M[~on_M].mean()))


def _quotient(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _mean_correlation(p_TM: Tensor) -> float:
    """Mean Pearson correlation over all pairs of rows; NaN with a row that is the same all over."""
    centred = p_TM - p_TM.mean(1, keepdim=True)
    length_T1 = centred.norm(dim=1, keepdim=True)
    count = len(p_TM)
    if count < 2 or bool((length_T1 < 1e-12).any()):
        return math.nan
    total = (centred / length_T1).sum(0).square().sum()
    return float((total - count) / (count * (count - 1)))
