"""Names and layouts of GreenMIM's published Twins checkpoints, for timm's Twins.

C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# spconv holds (out, kernel, kernel, in); torch (out, in, kernel, kernel).
_SPARSE = re.compile(r"(patch_embeds\.[1-9]\d*\.proj|blocks\.\d+\.\d+\.attn\.sr)\.weight")
_POSITION = re.compile(r"pos_block\.\d+\.proj\.0\.weight")


def twins_state(state: Mapping[str, Tensor], *, lost_residual: bool = True) -> dict[str, Tensor]:
    """State dict of timm's Twins from GreenMIM's names, with or without ``encoder.``.

    The decoder is left out if ``state`` has the ``encoder.`` prefix.

    Args:
        state: the published tensors.
        lost_residual: they were trained with a position encoding conv(x) instead of
            x + conv(x), as in the released code. The same function has 1 less at the centre of the
            kernel of x + conv(x).

    Raises:
        ValueError: no tensor of a Twins is among them.
    """
    inside = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    renamed = {}
    for name, tensor in (inside or state).items():
        if _SPARSE.fullmatch(name):
            tensor = tensor.permute(0, 3, 1, 2).contiguous()
        elif lost_residual and _POSITION.fullmatch(name):
            tensor = tensor.clone()
            tensor[:, :, 1, 1] -= 1
        renamed[name] = tensor
    if "pos_block.0.proj.0.weight" not in renamed:
        raise ValueError(
            f"not a Twins checkpoint: no pos_block.0.proj.0.weight among {sorted(state)[:5]}"
        )
    return renamed
