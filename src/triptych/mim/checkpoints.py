"""Names of published checkpoints: Swin, SimMIM, GreenMIM and MAE to timm and to our decoder.

C channels of a stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.mim.twins_checkpoints import twins_state

# Buffers that a model computes for itself, and parts that only pre-training has.
_REBUILT = ("relative_position_index", "attn_mask", "relative_coords_table")
_PRETRAINING = ("mask_token", "decoder", "vis_mask_token")
_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.(.+)")
_DECODER = {
    "mask_token": "mask_token",
    "decoder_embed.": "embed.",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "head.",
}


def swin_state(
    state: Mapping[str, Tensor], *, row_first_merging: bool = False
) -> dict[str, Tensor]:
    """State dict of timm's SwinTransformer from Microsoft's names, with or without ``encoder.``.

    timm merges at the beginning of a stage, the original at the end of the one before. Buffers
    that are rebuilt are left out, and so is the decoder if ``state`` has the ``encoder.`` prefix.

    Args:
        state: the published tensors.
        row_first_merging: for GreenMIM checkpoints trained with the code of June 2022, which
            merged children in the order (0,0), (0,1), (1,0), (1,1); Swin's is column first.

    Raises:
        ValueError: no tensor of a Swin Transformer is among them.
    """
    inside = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    renamed = {}
    for name, tensor in (inside or state).items():
        if name.endswith(_REBUILT):
            continue
        match = _DOWNSAMPLE.fullmatch(name)
        if match:
            name = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
            tensor = _column_first(tensor) if row_first_merging else tensor
        elif name in ("head.weight", "head.bias"):
            name = name.replace("head.", "head.fc.")
        renamed[name] = tensor
    if "patch_embed.proj.weight" not in renamed:
        raise ValueError(
            f"not a Swin checkpoint: no patch_embed.proj.weight among {sorted(state)[:5]}"
        )
    return renamed


def backbone_state(
    state: Mapping[str, Tensor], *, row_first_merging: bool = False
) -> dict[str, Tensor]:
    """timm's names for the backbone in ``state``, published or ours, of any kind.

    What only pre-training has is left out, with or without the prefix ``encoder.``; a Swin of
    Microsoft's layout, which merges at the end of a stage, is renamed by :func:`swin_state`, and
    GreenMIM's Twins, known by their sparse convolutions, are converted by :func:`twins_state`.
    """
    for prefix in ("encoder.backbone.", "encoder."):
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inside:
            state = inside
            break
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_PRETRAINING)}
    if any(name.startswith("layers.0.downsample.") for name in kept):
        return swin_state(kept, row_first_merging=row_first_merging)
    sparse = kept.get("patch_embeds.1.proj.weight")
    if sparse is not None and sparse.shape[2] != sparse.shape[3]:
        return twins_state(kept)
    return {name: tensor for name, tensor in kept.items() if not name.endswith(_REBUILT)}


def decoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of :class:`TransformerDecoder` from GreenMIM's or MAE's names.

    The fixed positions are computed, not loaded.

    Raises:
        ValueError: no tensor of the decoder is among them.
    """
    renamed = {}
    for name, tensor in state.items():
        for published, ours in _DECODER.items():
            if name.startswith(published):
                renamed[ours + name.removeprefix(published)] = tensor
    if "embed.weight" not in renamed:
        raise ValueError(
            f"not a masked-image-modelling checkpoint: no decoder_embed.weight among "
            f"{sorted(state)[:5]}"
        )
    return renamed


def _column_first(tensor: Tensor) -> Tensor:
    """Swap the channels of the second and third child along the last dimension, 4 · C long."""
    first, second, third, fourth = tensor.chunk(4, dim=-1)
    return torch.cat((first, third, second, fourth), dim=-1)
