"""Put a norm into a backbone: after construction, by module path, with the grid known.

A backbone's ``norm_layer`` argument tells a norm only its width, so the LayerNorms are exchanged
afterwards, at the sites where the DTN paper has its norm. Patch embedding, down-sampling and the
final norm keep their LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import baselines
from triptych.norms.dynamic_token_norm import DynamicTokenNorm


@dataclass(frozen=True)
class Replacement:
    """One exchanged norm: where it is, and what it was told of its surroundings."""

    path: str
    dim: int
    num_heads: int
    grid_size: tuple[int, int]
    prefix_tokens: int


class NormFactory(Protocol):
    """Makes a norm for tokens (B, prefix_tokens + height·width, dim)."""

    def __call__(
        self, *, dim: int, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int
    ) -> nn.Module: ...


def replace_norms(
    model: nn.Module,
    norm: str | NormFactory,
    *,
    form: str = "released",
    mean: str = "mixed",
    pool_to: int | None = None,
    init: str = "locality",
    last_plain: int | None = None,
) -> list[Replacement]:
    """Exchange LayerNorms of ``model``, in place, at the paper's sites; return them in order.

    ViT and DeiT: both norms of every block but the last ``last_plain``. Swin: both norms of
    every block, over the whole map of its stage. Gain and bias are carried over.

    Args:
        model: a timm VisionTransformer (DeiT included) or SwinTransformer.
        norm: one of :data:`NORM_NAMES` ("ln" leaves the model as it is), or a factory such as
            :class:`DynamicTokenNorm`.
        form, mean, pool_to, init: options of :class:`DynamicTokenNorm`.
        last_plain: how many of the last blocks keep LayerNorm; by default, for ViT 2 as
            published (fewer below 8 blocks: a quarter of the depth), for Swin 0.

    Raises:
        ValueError: the backbone or the norm is unknown, a site holds no LayerNorm, an option
            does not apply, or a width is not divisible by its heads.
    """
    options = {"form": form, "mean": mean, "pool_to": pool_to, "init": init}
    factory = _factory(norm, options)
    sites = _find_sites(model, last_plain)
    if factory is None:
        return []
    made = [(site, model.get_submodule(site.path), _make(factory, site)) for site in sites]
    for site, old, new in made:
        _carry_over(old, new)
        model.set_submodule(site.path, new)
    return sites


def _dtn(options: dict) -> NormFactory:
    def make(
        *, dim: int, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int
    ) -> nn.Module:
        return DynamicTokenNorm(dim, num_heads, grid_size, prefix_tokens=prefix_tokens, **options)

    return make


def _by_width(norm: Callable[[int], nn.Module]) -> NormFactory:
    """A factory for a norm that needs nothing but its width."""

    def make(
        *, dim: int, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int
    ) -> nn.Module:
        return norm(dim)

    return make


def _group_norm(
    *, dim: int, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int
) -> nn.Module:
    return baselines.GroupNorm(dim, num_heads)


_BASELINES: dict[str, NormFactory] = {
    "rms": _by_width(baselines.RMSNorm),
    "dyt": _by_width(baselines.DyT),
    "bn": _by_width(baselines.BatchNorm),
    "in": _by_width(baselines.InstanceNorm),
    "gn": _group_norm,
    "scale": _by_width(baselines.ScaleNorm),
}
NORM_NAMES = ("ln", "dtn", *_BASELINES)


def _factory(norm: str | NormFactory, options: dict) -> NormFactory | None:
    """The factory of ``norm``, None where LayerNorm stays."""
    if norm == "dtn" or norm is DynamicTokenNorm:
        return _dtn(options)
    plain = {"form": "released", "mean": "mixed", "pool_to": None, "init": "locality"}
    for name, value in options.items():
        if value != plain[name]:
            raise ValueError(f"{name}={value!r} is an option of 'dtn' alone, but norm={norm!r}")
    if not isinstance(norm, str) and callable(norm):
        return norm
    if norm not in NORM_NAMES:
        raise ValueError(f"norm must be one of {', '.join(NORM_NAMES)}, or a factory; got {norm!r}")
    return _BASELINES.get(norm)


def _vision_transformer_sites(model: VisionTransformer) -> list[list[Replacement]]:
    grid: tuple[int, int] = model.get_submodule("patch_embed").grid_size  # type: ignore[assignment]
    return [
        _block_sites(f"blocks.{index}", block, grid, model.num_prefix_tokens)
        for index, block in enumerate(model.blocks.children())
    ]


def _swin_transformer_sites(model: SwinTransformer) -> list[list[Replacement]]:
    return [
        _block_sites(f"layers.{stage}.blocks.{index}", block, tuple(block.input_resolution), 0)  # type: ignore[arg-type]
        for stage, layer in enumerate(model.layers.children())
        for index, block in enumerate(layer.get_submodule("blocks").children())
    ]


def _block_sites(
    path: str, block: nn.Module, grid: tuple[int, int], prefix_tokens: int
) -> list[Replacement]:
    """Both norms of a pre-norm block."""
    sites = []
    for name in ("norm1", "norm2"):
        norm = getattr(block, name, None)
        if not isinstance(norm, nn.LayerNorm):
            raise ValueError(
                f"{path}.{name} is {type(norm).__name__}, not a LayerNorm: norms are replaced "
                f"once, in a backbone built with plain LayerNorm"
            )
        heads = int(block.attn.num_heads)  # type: ignore[union-attr, arg-type]
        size = (int(grid[0]), int(grid[1]))
        sites.append(
            Replacement(f"{path}.{name}", norm.normalized_shape[0], heads, size, prefix_tokens)
        )
    return sites


@dataclass(frozen=True)
class _Backbone:
    """Finds a backbone's sites, block by block, and knows how many last blocks stay plain."""

    sites: Callable[..., list[list[Replacement]]]
    last_plain: Callable[[int], int]


_BACKBONES: dict[type[nn.Module], _Backbone] = {
    VisionTransformer: _Backbone(_vision_transformer_sites, lambda depth: min(2, depth // 4)),
    SwinTransformer: _Backbone(_swin_transformer_sites, lambda depth: 0),
}


def _find_sites(model: nn.Module, last_plain: int | None) -> list[Replacement]:
    backbone = next((b for kind, b in _BACKBONES.items() if isinstance(model, kind)), None)
    if backbone is None:
        known = ", ".join(sorted(kind.__name__ for kind in _BACKBONES))
        raise ValueError(
            f"norms cannot be put into a {type(model).__name__}; the backbones known are {known}"
        )
    blocks = backbone.sites(model)
    if last_plain is None:
        last_plain = backbone.last_plain(len(blocks))
    if not 0 <= last_plain <= len(blocks):
        raise ValueError(
            f"last_plain must be between 0 and the {len(blocks)} blocks of the backbone, "
            f"got {last_plain}"
        )
    return [site for block in blocks[: len(blocks) - last_plain] for site in block]


def _make(factory: NormFactory, site: Replacement) -> nn.Module:
    return factory(
        dim=site.dim,
        num_heads=site.num_heads,
        grid_size=site.grid_size,
        prefix_tokens=site.prefix_tokens,
    )


def _carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the device, dtype, mode and affine weights of the LayerNorm ``old``."""
    new.train(old.training)
    if not isinstance(old.weight, torch.Tensor):
        return
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    # ScaleNorm's gain multiplies a unit vector, which is √C shorter than LayerNorm's output.
    unit = old.weight.numel() ** 0.5 if isinstance(new, baselines.ScaleNorm) else 1.0
    with torch.no_grad():
        for name, value in (("weight", old.weight * unit), ("bias", old.bias)):
            parameter = getattr(new, name, None)
            if parameter is not None and isinstance(value, torch.Tensor):
                parameter.copy_(value)
