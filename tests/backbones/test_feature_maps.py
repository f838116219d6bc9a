"""Feature maps of every backbone: their sizes, what they equal, and that all of them learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from triptych.assembly import build_model
from triptych.backbones.feature_maps import FeatureMaps, stage_maps
from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.hydra_app import compose_run

SIDE = 64
# Strides at patches of nano size; of a plain backbone, a quarter of its stride to twice that.
STRIDES = {
    "swin_nano": (4, 8),
    "twins_svt_nano": (4, 8),
    "twins_pcpvt_nano": (4, 8),
    "pvt_v2_nano": (4, 8),
    "pvt_nano": (4, 8, 16),
    "levit_nano": (8, 16),
    "vit_nano": (1, 2, 4, 8),
    "released_vit_nano": (1, 2, 4, 8),
    "t2t_vit_nano": (1, 2, 4, 8),
}


def build(name: str, norm: str = "ln") -> nn.Module:
    config = compose_run(
        [f"backbone={name}", f"norm={norm}", "data=scenes", f"data.image_size={SIDE}"]
    )
    return build_model(config, 10)


def images() -> Tensor:
    return torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("name", sorted(STRIDES))
def test_maps_have_their_strides_and_everything_learns(name: str, norm: str) -> None:
    maps = FeatureMaps(build(name, norm))
    assert maps.strides == STRIDES[name]
    found = maps(images())
    assert [tuple(one.shape) for one in found] == [
        (2, width, SIDE // stride, SIDE // stride)
        for width, stride in zip(maps.widths, maps.strides, strict=True)
    ]
    sum((one * torch.randn_like(one)).sum() for one in found).backward()  # type: ignore[union-attr]
    idle = [name for name, p in maps.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_every_image_family_is_known_here() -> None:
    from triptych.choices import Family
    from triptych.matrix import smallest

    families = [f for f in Family if not f.reads_sequences and f is not Family.timm]
    assert {smallest(family) for family in families} == set(STRIDES)


@pytest.mark.parametrize("name", ["swin_nano", "twins_svt_nano", "twins_pcpvt_nano", "vit_nano"])
def test_the_last_map_is_what_timm_normalises(name: str) -> None:
    model: Any = build(name).eval()
    with torch.no_grad():
        last = stage_maps(model).read(model, images())[-1]
        tokens = model.norm(last.permute(0, 2, 3, 1)).flatten(1, 2)
        expected = model.forward_features(images())
    expected = expected.flatten(1, 2) if expected.ndim == 4 else expected
    torch.testing.assert_close(tokens, expected[:, -tokens.shape[1] :])


@pytest.mark.parametrize("name", ["levit_nano", "pvt_v2_nano"])
def test_the_last_map_is_timms_where_no_norm_follows(name: str) -> None:
    model: Any = build(name).eval()
    with torch.no_grad():
        last = stage_maps(model).read(model, images())[-1]
        expected = model.forward_features(images())
    expected = (
        expected.transpose(1, 2).unflatten(2, last.shape[2:]) if expected.ndim == 3 else expected
    )
    torch.testing.assert_close(last, expected)


def test_the_last_map_of_our_own_backbones_leads_to_their_logits() -> None:
    for name in ("pvt_nano", "released_vit_nano", "t2t_vit_nano"):
        model: Any = build(name).eval()
        with torch.no_grad():
            last = stage_maps(model).read(model, images())[-1]
            pvt = isinstance(model, ReleasedPvt)
            tokens = model.forward_stages(images())[-1] if pvt else model.forward_tokens(images())
            logits = model.head(model.norm(tokens)[:, 0])
            torch.testing.assert_close(logits, model(images()))
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_a_hierarchical_map_is_normalised_over_its_channels() -> None:
    maps = FeatureMaps(build("swin_nano").eval()).eval()
    with torch.no_grad():
        bare = stage_maps(maps.backbone).read(maps.backbone, images())
        for one, found in zip(bare, maps(images()), strict=True):
            expected = nn.functional.layer_norm(one.movedim(1, -1), one.shape[1:2], eps=1e-6)
            torch.testing.assert_close(found.movedim(1, -1), expected)


def test_maps_of_windows_equal_those_of_timm_by_name() -> None:
    """Swin at its published depth, through timm's own list of features."""
    name = "swin_tiny_patch4_window7_224"
    torch.manual_seed(0)
    whole: Any = timm.create_model(name, img_size=SIDE, in_chans=1, window_size=2).eval()
    listed: Any = timm.create_model(
        name, img_size=SIDE, in_chans=1, window_size=2, features_only=True
    ).eval()
    state = {key.replace("layers.", "layers_"): value for key, value in whole.state_dict().items()}
    listed.load_state_dict(state, strict=False)
    with torch.no_grad():
        expected = listed(images())
        found = stage_maps(whole).read(whole, images())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.permute(0, 3, 1, 2))


def test_finer_maps_are_left_out() -> None:
    assert FeatureMaps(build("vit_nano"), finest=4).strides == (4, 8)
    assert FeatureMaps(build("swin_nano"), finest=8).strides == (8,)
    with pytest.raises(ValueError, match="no feature map of a SwinTransformer has a stride of 16"):
        FeatureMaps(build("swin_nano"), finest=16)


def test_a_copy_reads_its_own_backbone() -> None:
    for name in ("swin_nano", "released_vit_nano", "pvt_nano"):
        maps = FeatureMaps(build(name)).eval()
        other = copy.deepcopy(maps)
        with torch.no_grad():
            for parameter in maps.backbone.parameters():
                parameter.zero_()
            changed, kept = maps(images()), other(images())
        assert not torch.allclose(changed[-1], kept[-1])


def test_weights_loaded_beforehand_stay() -> None:
    source, target = build("swin_nano"), build("swin_nano")
    nn.init.normal_(source.get_parameter("layers.1.blocks.0.attn.qkv.weight"))
    target.load_state_dict(source.state_dict())
    maps = FeatureMaps(target)
    for name, value in maps.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_what_gives_no_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear gives no feature maps to detect with"):
        FeatureMaps(nn.Linear(2, 2))


def test_a_class_token_stays_out_of_the_map() -> None:
    model = build("released_vit_nano")
    assert isinstance(model, ReleasedViT)
    (bare,) = stage_maps(model).read(model, images())
    assert bare.shape == (2, 64, SIDE // 4, SIDE // 4)
