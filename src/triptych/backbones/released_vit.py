"""The ViT of the released DTN code: the class token joins late, before the plain blocks.

Shapes: B batch, T patches, N = T or T + 1 tokens, C channels.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from triptych.norms.sites import NormSites, block_sites
from triptych.norms.sites.vision_transformer import plain_blocks


class ReleasedViT(nn.Module):
    """Pre-norm ViT as in the official DTN code (``vit_norm_mix``).

    Patches alone pass the first ``class_token_at`` blocks, which is where the norm is replaced;
    there a norm over the token grid has no token outside it. The class token has no position
    embedding. The state dict has the official names.

    Args:
        image_size: (height, width) in pixels.
        class_token_at: the block before which the class token joins; ``depth - 2`` as released.
        eps: of every LayerNorm.
        drop_path: greatest rate of stochastic depth, which grows linearly from 0.

    Raises:
        ValueError: ``class_token_at`` is not a block, so the class token would never join.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        class_token_at: int,
        channels: int = 3,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_class_token(class_token_at, depth)
        self.num_classes, self.class_token_at = num_classes, class_token_at
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim))
        self.blocks = transformer_blocks(
            embed_dim, depth, num_heads, mlp_ratio, qkv_bias, eps, drop_path
        )
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for linear layers, class token and position embedding."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, *image_size)."""
        return self.head(self.norm(self.forward_tokens(x))[:, 0])

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) after the last block, the class token first."""
        x_BNC = self.patch_embed(x) + self.pos_embed
        for index, block in enumerate(self.blocks):
            if index == self.class_token_at:
                x_BNC = torch.cat((self.cls_token.expand(len(x), -1, -1), x_BNC), 1)
            x_BNC = block(x_BNC)
        return x_BNC

    def norm_sites(self) -> NormSites:
        """Both norms of every block; those that the class token passes stay plain."""
        return late_class_token_sites(self, self.patch_embed.grid_size, self.class_token_at)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers by depth, as timm's models name them for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def transformer_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    qkv_bias: bool,
    eps: float,
    drop_path: float,
) -> nn.ModuleList:
    """Pre-norm blocks (timm's, which have the official names) with growing stochastic depth."""
    return nn.ModuleList(
        Block(
            dim=dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_path=rate,
            norm_layer=partial(nn.LayerNorm, eps=eps),  # type: ignore[arg-type]
        )
        for rate in growing_rates(drop_path, depth)
    )


def growing_rates(greatest: float, depth: int) -> list[float]:
    """Rates of stochastic depth, linear from 0 in the first block to ``greatest`` in the last."""
    return [greatest * index / max(1, depth - 1) for index in range(depth)]


def late_class_token_sites(
    model: nn.Module, grid: tuple[int, int], class_token_at: int
) -> NormSites:
    """Sites of a model with ``blocks``, whose class token joins before block ``class_token_at``.

    A late class token leaves the blocks that it passes plain, as released; one that is there from
    the first block is a prefix token, and the last blocks stay plain as in any ViT.
    """
    blocks = list(model.get_submodule("blocks").children())
    sites = [
        block_sites(
            model,
            f"blocks.{index}",
            num_heads=int(block.attn.num_heads),  # type: ignore[union-attr, arg-type]
            grid_size=(int(grid[0]), int(grid[1])),
            prefix_tokens=int(index >= class_token_at),
        )
        for index, block in enumerate(blocks)
    ]
    late = len(blocks) - class_token_at
    return NormSites(sites, late if class_token_at else plain_blocks(len(blocks)))


def check_class_token(class_token_at: int, depth: int) -> None:
    if not 0 <= class_token_at < depth:
        raise ValueError(
            f"class_token_at={class_token_at} is not one of the {depth} blocks: it must be 0 to "
            f"{depth - 1}, or the class token would never join"
        )


def init_linear(module: nn.Module) -> None:
    """The published initialization of linear layers and LayerNorm."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
