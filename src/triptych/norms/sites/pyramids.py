"""Sites of timm's hierarchical backbones with LayerNorm: Swin, Twins (SVT, PCPVT) and PVT v2.

Both norms of every block, over the whole map of the stage: the norms act before the tokens are
dealt into windows or keys are reduced, so the map is what they see, and "replace LN" means it
(our choice; the paper's code for these is not released). No class token, so no
block stays plain. Patch embedding, reduction of keys, stage ends and the final norm keep
LayerNorm.
"""

from __future__ import annotations

from collections.abc import Iterator

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from torch import nn

from triptych.norms.sites.site import NormSites, Replacement, block_sites


def swin_transformer_sites(model: SwinTransformer) -> NormSites:
    return NormSites(
        [
            _sites(model, f"layers.{stage}.blocks.{index}", block, block.input_resolution)
            for stage, layer in enumerate(model.layers.children())
            for index, block in enumerate(layer.get_submodule("blocks").children())
        ]
    )


def twins_sites(model: Twins) -> NormSites:
    grids = [(embed.H, embed.W) for embed in model.patch_embeds]
    return NormSites(
        [
            _sites(model, f"blocks.{stage}.{index}", block, grids[stage])
            for stage, blocks in enumerate(model.blocks)
            for index, block in enumerate(blocks.children())
        ]
    )


def pvt_v2_sites(model: PyramidVisionTransformerV2, image_size: tuple[int, int]) -> NormSites:
    return NormSites(
        [
            _sites(model, f"stages.{stage}.blocks.{index}", block, grid)
            for stage, (module, grid) in enumerate(
                zip(model.stages.children(), _halving(image_size), strict=False)
            )
            for index, block in enumerate(module.get_submodule("blocks").children())
        ]
    )


def _halving(image_size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids of PVT v2: a quarter of the image, then halves, rounded up by its padding."""
    height, width = (-(-side // 4) for side in image_size)
    while True:
        yield height, width
        height, width = -(-height // 2), -(-width // 2)


def _sites(model: nn.Module, path: str, block: nn.Module, grid: object) -> list[Replacement]:
    height, width = grid  # type: ignore[misc]
    heads = int(block.attn.num_heads)  # type: ignore[union-attr, arg-type]
    return block_sites(
        model,
        path,
        num_heads=heads,
        grid_size=(int(height), int(width)),  # type: ignore[has-type]
    )
