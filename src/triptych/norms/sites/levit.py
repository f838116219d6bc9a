"""Sites of timm's LeViT, which has BatchNorm folded into its linear layers and no LayerNorm.

The norm takes the place of the BatchNorm behind the qkv projection and behind the first MLP layer
of each block, over the same channels, grouped by head (the qkv channels lie head by head), on the
stage grid. Stem, shrinking attention, projections and head keep BatchNorm. This is our choice,
since LeViT's DTN is not released: the parameters stay comparable, and the network
keeps its shape, where pre-norm blocks would be another network. What is lost is that BatchNorm
can be folded into the layer for inference.
"""

from __future__ import annotations

from timm.models.levit import Levit, LevitBlock, LinearNorm
from torch import Tensor, nn

from triptych.norms.sites.site import NormSites, Replacement


class TokenLinearNorm(nn.Module):
    """timm's LinearNorm for a norm that must know which tokens belong to which sample.

    The names are timm's, so that the linear layer keeps its place in a state dict.
    """

    def __init__(self, linear: nn.Linear, norm: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.bn = norm

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.bn(self.linear(x_BNC))


def levit_sites(model: Levit) -> NormSites:
    """The sites of a LeViT.

    Raises:
        ValueError: it is built of convolutions, or a norm was replaced before.
    """
    if model.use_conv:
        raise ValueError(
            "norms cannot be put into a LeViT built of convolutions; build it with "
            "use_conv=False, which computes the same"
        )
    return NormSites(
        [
            _block_sites(f"stages.{stage}.blocks.{index}", block)
            for stage, module in enumerate(model.stages.children())
            for index, block in enumerate(module.get_submodule("blocks").children())
            if isinstance(block, LevitBlock)
        ]
    )


def _block_sites(path: str, block: LevitBlock) -> list[Replacement]:
    height, width = block.attn.resolution  # type: ignore[misc]
    sites = []
    for name, layer in (("attn.qkv", block.attn.qkv), ("mlp.ln1", block.mlp.ln1)):
        if not isinstance(layer, LinearNorm):
            raise ValueError(
                f"{path}.{name} is {type(layer).__name__}, not a LinearNorm: norms are replaced "
                f"once, in a LeViT as timm builds it"
            )
        sites.append(
            Replacement(
                f"{path}.{name}.bn",
                layer.bn.num_features,
                block.attn.num_heads,
                (int(height), int(width)),
                0,
            )
        )
    return sites


def exchange_norm(model: nn.Module, path: str, norm: nn.Module) -> None:
    """Put ``norm`` at ``path``; a LinearNorm around it, which mixes samples, gives way too."""
    owner_path, _, _ = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    if isinstance(owner, LinearNorm):
        norm = TokenLinearNorm(owner.linear, norm).train(owner.training)
        path = owner_path
    model.set_submodule(path, norm)
