"""Which reader belongs to which attention layer."""

from __future__ import annotations

from timm.layers import Attention
from timm.models import levit, pvt_v2
from timm.models.swin_transformer import WindowAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

from triptych.backbones.tokens_to_token import FullAttention, PerformerAttention
from triptych.visualization.attention_layers import (
    AttentionReader,
    LocallyGroupedReader,
    PlainReader,
    ReducedReader,
    SwinReader,
)
from triptych.visualization.block_layout import BlockLayout
from triptych.visualization.levit_attention import LevitReader, LevitShrinkingReader
from triptych.visualization.token_attention import PerformerReader, TokenReader

_READERS: dict[type[nn.Module], type[AttentionReader]] = {
    Attention: PlainReader,
    WindowAttention: SwinReader,
    LocallyGroupedAttn: LocallyGroupedReader,
    GlobalSubSampleAttn: ReducedReader,
    pvt_v2.Attention: ReducedReader,
    levit.Attention: LevitReader,
    levit.AttentionDownsample: LevitShrinkingReader,
    FullAttention: TokenReader,
    PerformerAttention: PerformerReader,
}


def reader_of(layout: BlockLayout) -> AttentionReader:
    """The reader of a block's attention layer.

    Raises:
        ValueError: attention of another kind.
    """
    for kind, reader in _READERS.items():
        if isinstance(layout.attention, kind):
            return reader(layout)
    raise ValueError(
        f"cannot capture the attention {type(layout.attention).__name__} of {layout.name}; "
        "softmax attention of timm's ViT, Swin, Twins, PVT v2 and LeViT and of T2T-ViT is supported"
    )
