"""Vision transformers as their authors released them: arrays of JAX, in timm's names and order.

Shapes: D width, H heads, P side of a patch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Some releases keep the weights beside the optimizer's state.
_OPTIMIZED = "opt/target/"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_ATTENTION = "MultiHeadDotProductAttention_1"
_OUTSIDE = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "embedding/bias": "patch_embed.proj.bias",
    "head/bias": "head.bias",
}
_IN_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    f"{_ATTENTION}/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
# Kernels are (in, out); linear layers here (out, in).
_KERNELS = {
    f"{_ATTENTION}/out/kernel": "attn.proj.weight",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
}


def original_vit_state(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """timm's state dict of a ViT from the arrays of the authors' release (arXiv 2010.11929).

    Queries, keys and values (D, H, D/H) are laid on each other as one linear layer. Arrays that
    have no place in a timm ViT keep their names, so that loading tells of them.
    """
    given = {name.removeprefix(_OPTIMIZED): array for name, array in arrays.items()}
    state: dict[str, Tensor] = {}
    for name, array in given.items():
        tensor = torch.from_numpy(np.array(array, dtype=np.float32))
        block = _BLOCK.fullmatch(name)
        if name == "embedding/kernel":  # P, P, channels, D
            state["patch_embed.proj.weight"] = tensor.permute(3, 2, 0, 1).contiguous()
        elif name == "head/kernel":
            state["head.weight"] = tensor.T.contiguous()
        elif block is None:
            state[_OUTSIDE.get(name, name)] = tensor
        else:
            state |= _in_block(f"blocks.{block[1]}.", block[2], tensor)
    for prefix in {name.rpartition("query.")[0] for name in state if ".query." in name}:
        for part in ("weight", "bias"):
            three = [state.pop(f"{prefix}{which}.{part}") for which in ("query", "key", "value")]
            state[f"{prefix}qkv.{part}"] = torch.cat(three)
    return state


def _in_block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in _IN_BLOCK:
        return {prefix + _IN_BLOCK[name]: tensor}
    if name in _KERNELS:
        return {prefix + _KERNELS[name]: tensor.flatten(0, -2).T.contiguous()}
    layer, _, rest = name.partition("/")
    which, _, kind = rest.partition("/")
    if layer == _ATTENTION and which in ("query", "key", "value"):
        if kind == "kernel":
            return {f"{prefix}attn.{which}.weight": tensor.flatten(1).T.contiguous()}
        return {f"{prefix}attn.{which}.bias": tensor.flatten()}
    return {prefix + name: tensor}
