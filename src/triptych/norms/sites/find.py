"""Which file knows the sites of a backbone."""

from __future__ import annotations

from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms.sites.levit import levit_sites
from triptych.norms.sites.pyramids import pvt_v2_sites, swin_transformer_sites, twins_sites
from triptych.norms.sites.sequence import bigbird_sites, reformer_sites
from triptych.norms.sites.site import ListsNormSites, NormSites
from triptych.norms.sites.vision_transformer import vision_transformer_sites

KNOWN = (
    "BigBird, LeViT, PVT, PVT v2, Reformer, Swin, T2T-ViT, Twins and ViT (DeiT), or any with a "
    "method norm_sites()"
)


def native_norm(model: nn.Module) -> str:
    """The name of the norm that a backbone is built with: "bn" for LeViT, else "ln"."""
    return "bn" if isinstance(model, Levit) else "ln"


def find_sites(model: nn.Module, image_size: tuple[int, int] | None = None) -> NormSites:
    """The sites of ``model``; ``image_size`` in pixels where the model does not know it.

    Raises:
        ValueError: the backbone is unknown, its norms were replaced before, or it is a PVT v2
            and ``image_size`` is None.
    """
    if isinstance(model, ListsNormSites):
        return model.norm_sites()
    if isinstance(model, VisionTransformer):
        return vision_transformer_sites(model)
    if isinstance(model, SwinTransformer):
        return swin_transformer_sites(model)
    if isinstance(model, Twins):
        return twins_sites(model)
    if isinstance(model, PyramidVisionTransformerV2):
        if image_size is None:
            raise ValueError("a PVT v2 does not know its token grids; give image_size in pixels")
        return pvt_v2_sites(model, image_size)
    if isinstance(model, Levit):
        return levit_sites(model)
    ancestors = {kind.__name__ for kind in type(model).__mro__}
    if "BigBirdPreTrainedModel" in ancestors:
        return bigbird_sites(model)
    if "ReformerPreTrainedModel" in ancestors:
        return reformer_sites(model)
    raise ValueError(
        f"norms cannot be put into a {type(model).__name__}; the backbones known are {KNOWN}"
    )
