"""Sites of timm's ViT and DeiT: both norms of a block.

The last two blocks keep LayerNorm as in the released ViT, fewer below 8 blocks: a
quarter of the depth. Class and distillation token are there from the first block, so they are
prefix tokens of every site.
"""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

from triptych.norms.sites.site import NormSites, block_sites


def plain_blocks(depth: int) -> int:
    """How many of the last blocks of a plain ViT keep LayerNorm."""
    return min(2, depth // 4)


def vision_transformer_sites(model: VisionTransformer) -> NormSites:
    height, width = model.get_submodule("patch_embed").grid_size  # type: ignore[misc]
    blocks = [
        block_sites(
            model,
            f"blocks.{index}",
            num_heads=int(block.attn.num_heads),  # type: ignore[union-attr, arg-type]
            grid_size=(int(height), int(width)),
            prefix_tokens=model.num_prefix_tokens,
        )
        for index, block in enumerate(model.blocks.children())
    ]
    return NormSites(blocks, plain_blocks(len(blocks)))
