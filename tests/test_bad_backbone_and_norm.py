"""What a user reads when a backbone cannot be built, or a norm cannot stand in it."""

from __future__ import annotations

import pytest

from triptych.choices import PretrainName
from triptych.config import ConfigError
from triptych.hydra_app import compose_run
from triptych.legality.pretraining import FAMILIES, listed

BACKBONES = [
    (
        ["backbone=t2t_vit_nano", "backbone.depths=[2,2]"],
        "backbone.depths=[2, 2] has 2 entries, but a plain ViT has one stage: give one number, for "
        "example [12].",
    ),
    (
        ["backbone=pvt_nano", "backbone.embed_dims=[32,48]"],
        "backbone.embed_dims=[32, 48] has 2 entries for 3 stages of backbone.depths: give one for "
        "each stage.",
    ),
    (
        ["backbone=twins_svt_nano", "backbone.sr_ratios=[2]"],
        "backbone.sr_ratios=[2] has 1 entries for 2 stages of backbone.depths: give one for each "
        "stage.",
    ),
    (
        ["backbone=pvt_v2_nano", "backbone.mlp_ratios=[4]"],
        "backbone.mlp_ratios=[4.0] has 1 entries for 2 stages of backbone.depths: give one for "
        "each stage.",
    ),
    (
        ["backbone=pvt_nano", "backbone.embed_dim=32"],
        "backbone.embed_dim=32 has no meaning for backbone.family=pvt; give backbone.embed_dims, "
        "one width for each stage.",
    ),
    (
        ["backbone=swin_nano", "backbone.embed_dims=[32,64]"],
        "backbone.embed_dims=[32, 64] has no meaning for backbone.family=swin, only for pvt, "
        "pvt_v2, twins_svt, twins_pcpvt, levit; leave it empty.",
    ),
    (
        ["backbone=levit_nano", "backbone.sr_ratios=[2,1]"],
        "backbone.sr_ratios=[2, 1] has no meaning for backbone.family=levit, only for pvt, pvt_v2, "
        "twins_svt, twins_pcpvt; leave it empty.",
    ),
    (
        ["backbone=twins_pcpvt_nano", "backbone.num_heads=[2,5]"],
        "backbone.num_heads=[2, 5] does not fit: 5 heads do not divide the width 64 of stage 2; "
        "legal there are [1, 2, 4, 8, 16, 32].",
    ),
    (
        ["backbone=levit_nano", "backbone.patch_size=4"],
        "backbone.patch_size=4 does not fit backbone.family=levit, whose first layers have a "
        "stride of 8 or 16.",
    ),
    (
        ["backbone=pvt_v2_nano", "backbone.patch_size=2"],
        "backbone.patch_size=2 does not fit backbone.family=pvt_v2, whose first layers have a "
        "stride of 4.",
    ),
    (
        ["backbone=levit_nano", "backbone.key_dim=80"],
        "backbone.key_dim=80 is more than the width 64 of a stage, so that its shrinking attention "
        "would have no head; give that or less.",
    ),
    (
        ["backbone=levit_nano", "backbone.num_heads=[4,0]"],
        "backbone.num_heads=[4, 0] must be 1 or more.",
    ),
    (
        ["backbone=twins_svt_nano", "backbone.window_size=1"],
        "backbone.window_size=1 leaves nothing to attend to in the windows of Twins-SVT; give 2 or "
        "more.",
    ),
    (
        ["backbone=t2t_vit_nano", "backbone.strides=[2,2]"],
        "backbone.kernels=[3, 3, 3] and backbone.strides=[2, 2] must have one entry for each soft "
        "split, for example [7, 3, 3] and [4, 2, 2].",
    ),
    (
        ["backbone=t2t_vit_nano", "backbone.kernels=[3,1,3]"],
        "backbone.kernels=[3, 1, 3] does not fit backbone.strides=[2, 2, 1]: a kernel must be at "
        "least its stride, and odd where the stride is 1.",
    ),
    (
        ["backbone=vit_nano", "backbone.class_token=late"],
        "backbone.class_token=late has no meaning for backbone.family=vit; use first, or a "
        "backbone of family released_vit or t2t_vit.",
    ),
    (
        ["backbone=released_vit_nano", "backbone.depths=[2]"],
        "backbone.depths=[2] is too shallow for backbone.class_token=late, which joins before the "
        "last two blocks; give [3] or more.",
    ),
    (
        ["backbone=levit_nano", "data.image_size=36"],
        "data.image_size=36 is not a multiple of the total stride 8 of backbone.name=levit_nano; "
        "the nearest legal sizes are 32 and 40.",
    ),
    (
        ["backbone=pvt_nano", "backbone.sr_ratios=[4,2,2]"],
        "backbone.sr_ratios=[4, 2, 2] must end with 1 for backbone.family=pvt, whose class token "
        "in the last stage lies on no grid.",
    ),
    (
        ["backbone=twins_svt_nano", "backbone.sr_ratios=[3,1]"],
        "backbone.sr_ratios=[3, 1] does not fit data.image_size=32: 3 does not divide the 8x8 "
        "token grid of stage 1; legal there are [1, 2, 4, 8].",
    ),
    (
        ["backbone=levit_nano", "pretrain=standard"],
        "pretrain=standard does not know the layout of backbone=levit_nano; legal are the "
        f"backbones of family {listed(FAMILIES[PretrainName.standard], 'and')}, or pretrain=none.",
    ),
    (
        ["backbone=levit_nano", "pretrain=greenmim"],
        "pretrain=greenmim does not know the layout of backbone=levit_nano; legal are the "
        f"backbones of family {listed(FAMILIES[PretrainName.greenmim], 'and')}, or pretrain=none.",
    ),
    (
        ["backbone=levit_nano", "backbone.class_token=middle"],
        "backbone.class_token=middle is not a choice: legal are first, late.",
    ),
]

NORMS = [
    (
        ["norm=rms", "norm.pool_to=4"],
        "norm.pool_to=4 has no meaning for norm.name=rms; leave it null or use norm=dtn.",
    ),
    (
        ["norm=in", "norm.position_lr_factor=0.1"],
        "norm.position_lr_factor=0.1 has no meaning for norm.name=in; leave it 1 or use norm=dtn.",
    ),
    (
        ["norm=dtn", "norm.position_lr_factor=-1"],
        "norm.position_lr_factor=-1 is out of range: it must be 0 or more.",
    ),
    (
        ["norm=dtn", "norm.pool_to=5"],
        "norm.pool_to=5 does not divide the 8x8 token grid of stage 1 of backbone=swin_nano; legal "
        "there are [1, 2, 4, 8], or null.",
    ),
    (
        ["backbone=levit_nano", "backbone.num_heads=[4,5]", "norm=dtn"],
        "norm=dtn cannot be used with backbone=levit_nano: it groups the 192 channels of the MLP "
        "of stage 2 by 5 heads, which do not divide them; change backbone.num_heads or "
        "backbone.mlp_ratio, or use another norm.",
    ),
    (
        ["backbone=levit_nano", "backbone.num_heads=[3,6]", "norm=gn"],
        "norm=gn cannot be used with backbone=levit_nano: it groups the 128 channels of the MLP of "
        "stage 1 by 3 heads, which do not divide them; change backbone.num_heads or "
        "backbone.mlp_ratio, or use another norm.",
    ),
    (
        ["norm=in", "data.image_size=8"],
        "norm=in cannot be used with backbone=swin_nano at data.image_size=8: stage 2 has a single "
        "token, which has no variance over tokens; use a larger image or another norm.",
    ),
    (
        ["norm=in", "pretrain=greenmim", "pretrain.mask_ratio=0.9375"],
        "norm=in cannot be used with pretrain.mask_ratio=0.9375, which leaves a single visible "
        "token in the last stage, without a variance over tokens; give a smaller ratio or use "
        "another norm.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BACKBONES + NORMS)
def test_refused_with_the_reason(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_run(overrides)
    assert str(refusal.value) == sentence


LEGAL = [
    ["backbone=levit_nano", "backbone.num_heads=[3,5]", "norm=rms"],
    ["backbone=released_vit_nano", "backbone.class_token=first", "backbone.depths=[2]"],
    ["backbone=t2t_vit_nano", "backbone.class_token=first", "backbone.token_attention=transformer"],
    ["norm=dtn", "norm.pool_to=14"],
    ["backbone=pvt_nano", "norm=dtn", "norm.pool_to=4"],
    ["backbone=vit_nano", "norm=in", "data.image_size=4"],
    ["backbone=levit_nano", "data.image_size=40", "norm=dtn"],
    *(["pretrain=greenmim", f"norm={norm}"] for norm in ("bn", "in", "gn", "rms", "dyt", "scale")),
    *(["pretrain=standard", f"norm={norm}", "backbone=vit_nano"] for norm in ("bn", "in")),
]


@pytest.mark.parametrize("overrides", LEGAL, ids=" ".join)
def test_accepted(overrides: list[str]) -> None:
    compose_run(overrides)
