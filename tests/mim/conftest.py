"""Shared by the tests of masked image modelling: reference data, and naive dense forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.norms import DynamicTokenNorm

REFERENCE = Path(__file__).parents[1] / "reference" / "greenmim"
BARRED = -1e30  # finite, so that a window without visible keys stays finite too


@dataclass
class Golden:
    """One reference file: arrays by name, and the settings that made them."""

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    grad_names: list[str]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def weights(self) -> dict[str, Tensor]:
        prefix = "weights/"
        return {
            name.removeprefix(prefix): torch.from_numpy(array)
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    @property
    def mask(self) -> Tensor:
        return self.tensor("mask").bool()


@cache
def load_golden(name: str) -> Golden:
    with np.load(REFERENCE / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta"))) if "meta" in arrays else {}
    return Golden(arrays, meta.get("config", {}), meta.get("grad_names", []))


def golden_swin(golden: Golden) -> SwinTransformer:
    """timm's Swin of a reference file, without its weights.

    The published rule makes the windows of a grid whose smaller side fits into the window as large
    as that side; timm decides for each side.
    """
    config = golden.config
    size = config["img"] if isinstance(config["img"], list) else [config["img"]] * 2
    grids = [[side // config["patch"] // 2**i for side in size] for i in range(3)]
    windows = [(min(config["window"], *grid),) * 2 for grid in grids]
    windows += [windows[-1]] * (len(config["depths"]) - 3)
    return SwinTransformer(
        img_size=size,
        patch_size=config["patch"],
        embed_dim=config["embed"],
        depths=config["depths"],
        num_heads=config["heads"],
        window_size=windows,
        num_classes=0,
        drop_path_rate=0.0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    return load_golden


@pytest.fixture(scope="session")
def build_golden_swin() -> Callable[[Golden], SwinTransformer]:
    return golden_swin


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Give a model weights under which every term of the arithmetic matters; float64, eval."""

    def apply(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1 and "table" not in name:
                    noise = noise * parameter[0].numel() ** -0.5
                elif name.endswith("weight") and parameter.ndim == 1:
                    noise = 1 + 0.1 * noise
                else:
                    noise = 0.5 * noise
                parameter.copy_(noise)
        return model.double().eval()

    return apply


@pytest.fixture(scope="session")
def dense_swin() -> Callable[..., Tensor]:
    """timm's Swin on the whole grid, with the hidden keys removed: latents (B, K, C)."""

    def run(model: SwinTransformer, images: Tensor, mask_BL: Tensor) -> Tensor:
        embed = model.patch_embed
        x = embed.proj(images).permute(0, 2, 3, 1)
        side = 2 ** (len(model.layers) - 1)
        hidden_BUV = mask_BL.view(len(images), x.shape[1] // side, x.shape[2] // side)
        x = dense_norm(embed.norm, x, hidden_BUV)
        for stage in model.layers:
            if isinstance(stage.downsample, PatchMerging):
                children = [x[:, down::2, across::2] for across in (0, 1) for down in (0, 1)]
                x = dense_norm(stage.downsample.norm, torch.cat(children, 3), hidden_BUV)
                x = stage.downsample.reduction(x)
            for block in stage.blocks:
                y = dense_norm(block.norm1, x, hidden_BUV)
                x = x + _dense_window_attention(block, y, _on_grid(hidden_BUV, x))
                x = x + block.mlp(dense_norm(block.norm2, x, hidden_BUV))
        x = dense_norm(model.norm, x, hidden_BUV).flatten(1, 2)
        return torch.stack([sample[~hide] for sample, hide in zip(x, mask_BL, strict=True)])

    return run


def dense_norm(norm: nn.Module, x: Tensor, hidden_BUV: Tensor) -> Tensor:
    """A norm on the whole grid (B, H, W, C); one that mixes tokens is told which exist."""
    if isinstance(norm, DynamicTokenNorm):
        visible = ~_on_grid(hidden_BUV, x).flatten(1)
        return norm(x.flatten(1, 2), visible=visible).view(x.shape)
    return norm(x)


def _on_grid(hidden_BUV: Tensor, x: Tensor) -> Tensor:
    factor = x.shape[1] // hidden_BUV.shape[1]
    return hidden_BUV.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _dense_window_attention(block: Any, x: Tensor, hidden_BHW: Tensor) -> Tensor:
    """timm's own rolling, padding and mask; padding stays a key."""
    size, (down, across) = block.window_size, block.shift_size
    height, width = x.shape[1:3]
    below, right = -height % size[0], -width % size[1]
    x = F.pad(torch.roll(x, (-down, -across), (1, 2)), (0, 0, 0, right, 0, below))
    hidden = torch.roll(hidden_BHW, (-down, -across), (1, 2))
    hidden = F.pad(hidden, (0, right, 0, below), value=False).to(x.dtype)[..., None]
    keys = window_partition(hidden, size).flatten(1, 2)[:, :, 0]
    barred = (keys * BARRED)[:, None, :].expand(-1, keys.shape[1], -1)
    if block.attn_mask is not None:
        barred = barred + block.attn_mask.repeat(len(x), 1, 1)
    windows = window_partition(x, size).flatten(1, 2)
    out = block.attn(windows, mask=barred).unflatten(1, size)
    out = window_reverse(out, size, height + below, width + right)[:, :height, :width]
    return torch.roll(out, (down, across), (1, 2))


@pytest.fixture(scope="session")
def dense_vit() -> Callable[..., Tensor]:
    """timm's ViT on all patches, with the hidden keys removed: latents (B, K, C)."""

    def run(model: VisionTransformer, images: Tensor, mask_BL: Tensor) -> Tensor:
        prefix = model.num_prefix_tokens
        keys = F.pad(~mask_BL, (prefix, 0), value=True)
        allowed = keys[:, None, None, :] | torch.eye(keys.shape[1], dtype=torch.bool)
        x = model.forward_features(images, attn_mask=allowed)[:, prefix:]
        return torch.stack([sample[~hide] for sample, hide in zip(x, mask_BL, strict=True)])

    return run
