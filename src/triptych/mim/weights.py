"""Weights in files: published checkpoints into a backbone, and a backbone out to timm's format."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from triptych.mim.checkpoints import backbone_state
from triptych.mim.original_vit import original_vit_state

# Where released files keep the weights beside optimizer, epoch and settings.
_NESTED = ("model", "state_dict", "model_state", "module")
_CLASSIFIER = "head."
_SHOWN = 3
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile),
    *(RuntimeError, ValueError, EOFError, OSError),
)
# One table, or one for each stage of PVT.
_POSITIONS = re.compile(r"pos_embed\d*")


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit; the message is one sentence for the user."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a file of ``torch.save``, by their names.

    Arrays of a .npz file are those of an original ViT, renamed as in timm. Nothing but tensors,
    plain containers and the settings of released checkpoints is unpickled.

    Raises:
        WeightsError: there is no such file, or it cannot be read as weights.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; give the file of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return original_vit_state(arrays)
        # SimMIM's files keep their settings in a kind of dictionary of the package yacs.
        allowed: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds more than tensors and plain settings"
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}); give a whole .safetensors file, one of "
            f"torch.save, or the .npz of an original ViT"
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for name in _NESTED:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
        tensors = {str(name): value for name, value in content.items() if torch.is_tensor(value)}
        if tensors:
            return tensors
    raise WeightsError(
        f"{path} holds no tensors by name; give a state dict, or a checkpoint with one under "
        f"{', '.join(_NESTED)}"
    )


def load_backbone(model: nn.Module, path: Path, *, row_first_merging: bool = False) -> None:
    """Give ``model`` the features of a file; its classifier stays as it is.

    Files: the published ones of GreenMIM, SimMIM, MAE and Swin, a timm state dict, or weights
    that a run of this project has left. Bias tables of other windows and position embeddings of
    other grids are interpolated (bicubic), as usual when the image size changes.

    Args:
        model: timm's names are those of its state dict.
        path: see :func:`read_weights`.
        row_first_merging: see :func:`~triptych.mim.checkpoints.swin_state`.

    Raises:
        WeightsError: the file cannot be read, or is of another network.
    """
    state = backbone_state(read_weights(path), row_first_merging=row_first_merging)
    own = {name: t for name, t in model.state_dict().items() if not name.startswith(_CLASSIFIER)}
    given = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    prefix = getattr(model, "num_prefix_tokens", None)
    fitted = {
        name: _fit(name, tensor, own[name], prefix) if name in own else tensor
        for name, tensor in given.items()
    }
    _check(own, fitted, path)
    model.load_state_dict(fitted, strict=False)


def _fit(name: str, tensor: Tensor, own: Tensor, prefix_tokens: int | None) -> Tensor:
    """``tensor`` in the shape of ``own`` where there is a known way; else as it is.

    Without ``prefix_tokens`` they are what a table has beyond a square.
    """
    if tensor.shape == own.shape:
        return tensor
    if name.endswith("relative_position_bias_table") and tensor.shape[1:] == own.shape[1:]:
        side = round(own.shape[0] ** 0.5)
        window = ((side + 1) // 2,) * 2
        return resize_rel_pos_bias_table_simple(tensor, window, own.shape)
    if _POSITIONS.fullmatch(name) and tensor.shape[2:] == own.shape[2:]:
        side = math.isqrt(own.shape[1] - (prefix_tokens or 0))
        prefix = own.shape[1] - side**2
        return resample_abs_pos_embed(tensor, [side, side], num_prefix_tokens=prefix)
    return tensor


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in given]
    strange = [name for name in given if name not in own]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    faults = (("lacks", missing), ("has", strange), ("has the shapes", shapes))
    told = [f"{word} {_some(names)}" for word, names in faults if names]
    if told:
        raise WeightsError(
            f"{path} does not fit the backbone: it {', and '.join(told)}; use the backbone and the "
            f"norm that it was made with"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def save_backbone(model: nn.Module, path: Path) -> None:
    """The weights of ``model`` under its own names, whole or not at all, as safetensors.

    For timm's models these are timm's names: ``timm.create_model(name, ...)`` and
    ``load_state_dict(load_file(path))`` give the same network.

    Raises:
        WeightsError: the file cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(tensors, unfinished, metadata={"format": "pt"})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error
