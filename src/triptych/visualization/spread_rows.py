"""Spread of views by level and group of tokens, as a table.

Shapes: B images, T tokens, N patches of the first grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.visualization.capture import Capture
from triptych.visualization.foreground import covered_share
from triptych.visualization.object_tokens import COVERAGE
from triptych.visualization.view_spread import view_spread
from triptych.visualization.views import DeepViews


def spread_rows(captured: Capture, views: DeepViews, objects: Tensor) -> list[dict[str, object]]:
    """Means of `ViewSpread`, a row for each block and group (class token, object, background).

    Object tokens are those whose region on their own grid is covered by at least 40 % of
    ``objects`` (bool (B, Y, X)). A number that a group does not have is None. ``level`` counts
    blocks from 1.
    """
    first = captured.blocks[0].grid
    patches_BN = covered_share(objects, first) >= COVERAGE
    rows = []
    for level, block in enumerate(captured.blocks, start=1):
        shares_BTN = views.rollout[level - 1][:, :, views.prefix_tokens :]
        prefix, own = block.prefix_tokens, None
        if block.grid != first:
            own = torch.full((shares_BTN.shape[1],), -1)
        spread = view_spread(shares_BTN, first, own=own, objects=patches_BN)
        on_BT = covered_share(objects, block.grid) >= COVERAGE
        reads_class = captured.reads_class_token and prefix > 0
        nothing_BP = on_BT.new_zeros(len(on_BT), prefix)
        class_BT = torch.cat((nothing_BP, torch.zeros_like(on_BT)), 1)
        class_BT[:, :1] = reads_class
        groups = {
            "class token": class_BT,
            "object tokens": torch.cat((nothing_BP, on_BT), 1),
            "background tokens": torch.cat((nothing_BP, ~on_BT), 1),
        }
        for name, members_BT in groups.items():
            if bool(members_BT.any()):
                effective = _mean(spread.effective_patches, members_BT)
                assert effective is not None
                rows.append(
                    {
                        "level": level,
                        "block": block.name,
                        "tokens": name,
                        "effective_patches": effective,
                        "effective_share": effective / (first[0] * first[1]),
                        "entropy_nats": _mean(spread.entropy, members_BT),
                        "self_share": _mean(spread.self_share, members_BT),
                        "mean_distance_steps": _mean(spread.mean_distance, members_BT),
                        "object_ratio": _mean(spread.object_ratio, members_BT),
                    }
                )
    return rows


def _mean(values_BT: Tensor, members_BT: Tensor) -> float | None:
    """Mean over members that have a finite number."""
    chosen = values_BT[members_BT]
    chosen = chosen[chosen.isfinite()]
    return chosen.mean().item() if len(chosen) else None
