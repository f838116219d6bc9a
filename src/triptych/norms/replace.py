"""Put a norm into a backbone: after construction, by module path, with the grid known.

A backbone's ``norm_layer`` argument tells a norm only its width, so norms are exchanged
afterwards, at the sites where the DTN paper has its norm (:mod:`triptych.norms.sites`). It also
means that the backbone's own initialization has run by then and cannot undo DTN's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from triptych.norms import baselines
from triptych.norms.dynamic_token_norm import DynamicTokenNorm
from triptych.norms.padding import SequenceMask
from triptych.norms.sites.find import find_sites, native_norm
from triptych.norms.sites.levit import exchange_norm
from triptych.norms.sites.site import NormSites, Replacement

__all__ = ["NORM_NAMES", "NormFactory", "Replacement", "replace_norms"]


class NormFactory(Protocol):
    """Makes a norm for tokens (B, prefix_tokens + height·width, dim)."""

    def __call__(
        self, *, dim: int, num_heads: int, grid_size: int | tuple[int, int], prefix_tokens: int
    ) -> nn.Module: ...


def replace_norms(
    model: nn.Module,
    norm: str | NormFactory,
    *,
    form: str = "released",
    mean: str = "mixed",
    pool_to: int | None = None,
    prefix: str = "own",
    init: str = "locality",
    last_plain: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> list[Replacement]:
    """Exchange the norms of ``model``, in place, at the paper's sites; return them in order.

    Gain and bias are carried over. In BigBird and Reformer, DTN takes the attention mask of the
    forward pass, so that padding has no part in its statistics; of the other norms "bn", "in" and
    "gn" look at padding too.

    Args:
        model: a timm VisionTransformer (DeiT included), SwinTransformer, Twins, PVT v2 or LeViT,
            a BigBird or Reformer of transformers, or a backbone with ``norm_sites()`` as those
            of :mod:`triptych.backbones`.
        norm: one of :data:`NORM_NAMES`, of which the backbone's own ("bn" for LeViT, else "ln")
            leaves the model as it is, or a factory such as :class:`DynamicTokenNorm`.
        form, mean, pool_to, prefix, init: options of :class:`DynamicTokenNorm`.
        last_plain: how many of the last blocks keep their norm; by default as the backbone's
            part of :mod:`triptych.norms.sites` says: for ViT 2 as published, for most others 0.
        image_size: (height, width) in pixels, for PVT v2, which does not know its grids.

    Raises:
        ValueError: the backbone or the norm is unknown, a site holds another norm, an option
            does not apply, or a width is not divisible by its heads.
    """
    options = {"form": form, "mean": mean, "pool_to": pool_to, "prefix": prefix, "init": init}
    factory = _factory(norm, options)
    known = find_sites(model, image_size)
    sites = _chosen(known, last_plain)
    if norm == native_norm(model):
        return []
    made = [(site, model.get_submodule(site.path), _make(factory, site)) for site in sites]
    for site, old, new in made:
        _carry_over(old, new)
        exchange_norm(model, site.path, new)
    looking = [new for _, _, new in made if isinstance(new, DynamicTokenNorm)]
    if known.masked_by is not None and looking:
        SequenceMask().attach(model.get_submodule(known.masked_by), looking)
    return sites


def _dtn(options: dict) -> NormFactory:
    def make(
        *, dim: int, num_heads: int, grid_size: int | tuple[int, int], prefix_tokens: int
    ) -> nn.Module:
        return DynamicTokenNorm(dim, num_heads, grid_size, prefix_tokens=prefix_tokens, **options)

    return make


def _by_width(norm: Callable[[int], nn.Module]) -> NormFactory:
    """A factory for a norm that needs nothing but its width."""

    def make(
        *, dim: int, num_heads: int, grid_size: int | tuple[int, int], prefix_tokens: int
    ) -> nn.Module:
        return norm(dim)

    return make


def _group_norm(
    *, dim: int, num_heads: int, grid_size: int | tuple[int, int], prefix_tokens: int
) -> nn.Module:
    return baselines.GroupNorm(dim, num_heads)


_FACTORIES: dict[str, NormFactory] = {
    "ln": _by_width(nn.LayerNorm),
    "rms": _by_width(baselines.RMSNorm),
    "dyt": _by_width(baselines.DyT),
    "bn": _by_width(baselines.BatchNorm),
    "in": _by_width(baselines.InstanceNorm),
    "gn": _group_norm,
    "scale": _by_width(baselines.ScaleNorm),
}
_PLAIN = {
    "form": "released",
    "mean": "mixed",
    "pool_to": None,
    "prefix": "own",
    "init": "locality",
}
NORM_NAMES = tuple(dict.fromkeys(("ln", "dtn", *_FACTORIES)))


def _factory(norm: str | NormFactory, options: dict) -> NormFactory:
    if norm == "dtn" or norm is DynamicTokenNorm:
        return _dtn(options)
    for name, value in options.items():
        if value != _PLAIN[name]:
            raise ValueError(f"{name}={value!r} is an option of 'dtn' alone, but norm={norm!r}")
    if not isinstance(norm, str) and callable(norm):
        return norm
    if norm not in NORM_NAMES:
        raise ValueError(f"norm must be one of {', '.join(NORM_NAMES)}, or a factory; got {norm!r}")
    return _FACTORIES[norm]


def _chosen(known: NormSites, last_plain: int | None) -> list[Replacement]:
    blocks = known.blocks
    if last_plain is None:
        last_plain = known.last_plain
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
    """Give ``new`` the device, dtype, mode and affine weights of the norm ``old``."""
    new.train(old.training)
    if not isinstance(old.weight, torch.Tensor):
        return
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    # ScaleNorm's gain multiplies a unit vector, which is √C shorter than a normalised token.
    unit = old.weight.numel() ** 0.5 if isinstance(new, baselines.ScaleNorm) else 1.0
    with torch.no_grad():
        for name, value in (("weight", old.weight * unit), ("bias", old.bias)):
            parameter = getattr(new, name, None)
            if parameter is not None and isinstance(value, torch.Tensor):
                parameter.copy_(value)
