"""Backbones by specification."""

from __future__ import annotations

import pytest
import torch

from triptych.assembly import build_model
from triptych.backbones.build import BackboneSpec, Family, build_backbone, total_stride
from triptych.hydra_app import compose_run

# Parameters in millions as timm and the papers print them, with 1000 classes and 3 channels.
PUBLISHED = {
    "vit_tiny": 5.7,
    "vit_small": 22.1,
    "vit_base": 86.6,
    "swin_tiny": 28.3,
    "swin_small": 49.6,
    "swin_base": 87.8,
    "released_vit_tiny_star": 5.7,
    "released_vit_small": 22.0,
    "released_vit_base_star": 86.5,
    "pvt_tiny": 13.2,
    "pvt_small": 24.5,
    "pvt_medium": 44.2,
    "pvt_large": 61.4,
    "pvt_v2_b0": 3.7,
    "pvt_v2_b1": 14.0,
    "pvt_v2_b2": 25.4,
    "twins_svt_small": 24.1,
    "twins_svt_base": 56.1,
    "twins_svt_large": 99.3,
    "twins_pcpvt_small": 24.1,
    "twins_pcpvt_base": 43.8,
    "twins_pcpvt_large": 61.0,
    "levit_256": 18.4,  # 18.9 with the head for distillation, which has half a million
    "t2t_vit_14": 21.5,
    "t2t_vit_19": 39.2,
    "t2t_vit_24": 64.1,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config = compose_run(
        [f"backbone={name}", "data=synthetic", "data.image_size=224", "visualize=none"]
    )
    with torch.device("meta"):
        model = build_model(config, 1000)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[name], abs=0.06)


@pytest.mark.parametrize("name", ["vit_nano", "swin_nano"])
@pytest.mark.parametrize("norm", ["ln", "dtn"])
def test_small_ones_run_forward_and_backward(name: str, norm: str) -> None:
    config = compose_run([f"backbone={name}", f"norm={norm}"])
    model = build_model(config, 10)
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_small_swin_has_sixteen_mask_units_at_32_pixels() -> None:
    config = compose_run([])
    bone = config.backbone
    spec = BackboneSpec(Family.swin, bone.embed_dim, bone.depths, bone.num_heads, bone.patch_size)
    assert (config.data.image_size // total_stride(spec)) ** 2 == 16


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(compose_run(["seed=3"]), 10)
    torch.manual_seed(2)
    again = build_model(compose_run(["seed=3"]), 10)
    other = build_model(compose_run(["seed=4"]), 10)
    name = "layers.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_backbones_with_other_norms_start_from_the_same_weights() -> None:
    """What LN and DTN share is equal at the start, so that a comparison is of the norms alone."""
    plain = build_model(compose_run(["norm=ln"]), 10).state_dict()
    other = build_model(compose_run(["norm=dtn"]), 10).state_dict()
    shared = plain.keys() & other.keys()
    assert shared == plain.keys()
    assert all(torch.equal(plain[name], other[name]) for name in shared)


def test_any_timm_model() -> None:
    config = compose_run(
        ["backbone=timm", "backbone.timm_name=test_vit", "data=synthetic", "data.image_size=64"]
    )
    assert build_model(config, 7)(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_unknown_timm_model_names_some_that_exist() -> None:
    spec = BackboneSpec(Family.timm, timm_name="swin_enormous")
    with pytest.raises(ValueError, match=r"timm has no model 'swin_enormous'; some it has: swin_"):
        build_backbone(spec, image_size=(32, 32))


def test_image_that_does_not_divide_is_refused() -> None:
    spec = BackboneSpec(Family.swin, 16, (2, 2), (2, 4), patch_size=4, window_size=4)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - compared whole below
        build_backbone(spec, image_size=(36, 32))
    assert str(refusal.value) == (
        "image size 36x32 is not a multiple of the backbone's total stride 8"
    )
