"""What is known of one norm's place in a backbone, and of all places of one backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class Replacement:
    """One exchanged norm: where it is, and what it was told of its surroundings.

    ``grid_size`` is (height, width) in tokens, or the length of a sequence.
    """

    path: str
    dim: int
    num_heads: int
    grid_size: int | tuple[int, int]
    prefix_tokens: int


@dataclass(frozen=True)
class NormSites:
    """The sites of a backbone, one list for each block in order of depth.

    ``last_plain`` is how many of the last blocks keep their norm unless another number is asked
    for. ``masked_by`` is the path of the module whose forward takes the attention mask of padded
    sequences; None where there is no padding.
    """

    blocks: list[list[Replacement]]
    last_plain: int = 0
    masked_by: str | None = None


@runtime_checkable
class ListsNormSites(Protocol):
    """A backbone that knows its own sites."""

    def norm_sites(self) -> NormSites: ...


def block_sites(
    model: nn.Module,
    path: str,
    *,
    num_heads: int,
    grid_size: int | tuple[int, int],
    prefix_tokens: int = 0,
    norms: tuple[str, ...] = ("norm1", "norm2"),
) -> list[Replacement]:
    """The norms of the block at ``path``, by default both of a pre-norm block.

    Raises:
        ValueError: one of them is not a LayerNorm.
    """
    block = model.get_submodule(path)
    sites = []
    for name in norms:
        norm = _descend(block, name)
        if not isinstance(norm, nn.LayerNorm):
            raise ValueError(
                f"{path}.{name} is {type(norm).__name__}, not a LayerNorm: norms are replaced "
                f"once, in a backbone built with plain LayerNorm"
            )
        dim = norm.normalized_shape[0]
        sites.append(Replacement(f"{path}.{name}", dim, num_heads, grid_size, prefix_tokens))
    return sites


def _descend(block: nn.Module, name: str) -> nn.Module | None:
    found: nn.Module | None = block
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
