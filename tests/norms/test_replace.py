"""Putting norms into backbones: the sites, what they are told, and what is carried over."""

import re

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import NORM_NAMES, DynamicTokenNorm, Replacement, ScaleNorm, replace_norms


def vit(depth=4, **options):
    torch.manual_seed(0)
    settings = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 16, "num_heads": 4}
    return VisionTransformer(depth=depth, num_classes=3, **settings | options)


def swin(image_size=32, **options):
    torch.manual_seed(0)
    settings = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return SwinTransformer(
        img_size=image_size, patch_size=4, in_chans=3, num_classes=3, **settings | options
    )


def shake(model):
    """Random affine weights, so that carrying them over shows."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model


def images(height=16, width=24):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_vit_sites():
    model = vit()
    replaced = replace_norms(model, "dtn")
    assert replaced == [
        Replacement(f"blocks.{block}.norm{norm}", 16, 4, (4, 6), 1)
        for block in range(3)
        for norm in (1, 2)
    ]
    made = [name for name, m in model.named_modules() if isinstance(m, DynamicTokenNorm)]
    assert made == [site.path for site in replaced]
    assert isinstance(model.blocks[3].norm1, nn.LayerNorm)
    assert isinstance(model.norm, nn.LayerNorm)
    norm = model.blocks[0].norm1
    assert (norm.prefix_tokens, str(norm.grid), norm.eps) == (1, "4x6", 1e-5)


@pytest.mark.parametrize(("depth", "replaced"), [(1, 1), (3, 3), (4, 3), (7, 6), (8, 6), (12, 10)])
def test_the_last_blocks_of_a_vit_stay_plain(depth, replaced):
    assert len(replace_norms(vit(depth), "dtn")) == 2 * replaced


def test_last_plain_can_be_chosen():
    assert len(replace_norms(vit(4), "dtn", last_plain=0)) == 8
    assert len(replace_norms(vit(4), "dtn", last_plain=3)) == 2
    assert len(replace_norms(swin(), "dtn", last_plain=1)) == 6


def test_swin_sites():
    model = swin()
    assert replace_norms(model, "dtn") == [
        Replacement(f"layers.{stage}.blocks.{block}.norm{norm}", dim, heads, grid, 0)
        for stage, dim, heads, grid in ((0, 8, 2, (8, 8)), (1, 16, 4, (4, 4)))
        for block in (0, 1)
        for norm in (1, 2)
    ]
    assert isinstance(model.patch_embed.norm, nn.LayerNorm)
    assert isinstance(model.layers[1].downsample.norm, nn.LayerNorm)
    assert isinstance(model.norm, nn.LayerNorm)


def test_swin_with_a_map_below_its_window():
    model = swin((16, 32), window_size=7)
    sites = replace_norms(model, "dtn")
    assert {site.grid_size for site in sites} == {(4, 8), (2, 4)}
    assert model(images(16, 32)).shape == (2, 3)


def test_deit_with_two_prefix_tokens():
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", depth=2, embed_dim=16, num_heads=4, img_size=32
    )
    assert {site.prefix_tokens for site in replace_norms(model, "dtn")} == {2}
    assert model.eval()(images(32, 32)).shape == (2, 1000)


@pytest.mark.parametrize(("build", "size"), [(vit, (16, 24)), (swin, (32, 32))])
def test_dtn_with_ratio_one_in_the_paper_form_is_the_layer_norm_it_replaced(build, size):
    model = shake(build()).eval()
    x = images(*size)
    want = model(x)
    replaced = replace_norms(model, "dtn", form="paper", last_plain=0)
    for site in replaced:
        norm = model.get_submodule(site.path)
        norm.eps = model.norm.eps
        norm.mean_norm_weight.data.fill_(100.0)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize(("build", "size"), [(vit, (16, 24)), (swin, (32, 32))])
def test_every_norm_trains_in_every_backbone(build, size, norm):
    model = build()
    replaced = replace_norms(model, norm)
    assert bool(replaced) == (norm != "ln")
    model(images(*size)).square().sum().backward()
    for site in replaced:
        for name, parameter in model.get_submodule(site.path).named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_ln_leaves_the_model_as_it_is():
    model = vit()
    before = list(model.modules())
    assert replace_norms(model, "ln") == []
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


@pytest.mark.parametrize("norm", [name for name in NORM_NAMES if name not in ("ln", "scale")])
def test_affine_weights_dtype_and_mode_are_carried_over(norm):
    model = shake(vit()).double().eval()
    old = model.blocks[0].norm2
    replace_norms(model, norm)
    new = model.blocks[0].norm2
    assert torch.equal(new.weight, old.weight)
    if norm != "rms":
        assert torch.equal(new.bias, old.bias)
    assert not new.training
    assert {p.dtype for p in new.parameters()} == {torch.float64}


def test_scale_norm_takes_the_gain_over_in_its_own_unit():
    model = shake(vit())
    old = model.blocks[0].norm1
    replace_norms(model, "scale")
    x = torch.randn(2, 25, 16)
    want = x / x.square().mean(-1, keepdim=True).sqrt() * old.weight
    torch.testing.assert_close(model.blocks[0].norm1(x), want)
    assert isinstance(model.blocks[0].norm1, ScaleNorm)


def test_a_factory_is_told_the_surroundings():
    calls = []

    def factory(*, dim, num_heads, grid_size, prefix_tokens):
        calls.append((dim, num_heads, grid_size, prefix_tokens))
        return nn.Identity()

    replaced = replace_norms(vit(), factory)
    assert calls == [(16, 4, (4, 6), 1)] * len(replaced)


def test_the_class_is_a_factory_and_takes_the_options():
    model = swin()
    replace_norms(model, DynamicTokenNorm, form="paper", mean="token", pool_to=4, init="released")
    norm = model.layers[0].blocks[0].norm1
    assert (norm.form, norm.mean, norm.cell, norm.pos_proj.init) == (
        "paper",
        "token",
        (2, 2),
        "released",
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: replace_norms(nn.Linear(2, 2), "dtn"),
            "norms cannot be put into a Linear; the backbones known are BigBird, LeViT, PVT, "
            "PVT v2, Reformer, Swin, T2T-ViT, Twins and ViT (DeiT), or any with a method "
            "norm_sites()",
        ),
        (
            lambda: replace_norms(vit(), "dtm"),
            "norm must be one of ln, dtn, rms, dyt, bn, in, gn, scale, or a factory; got 'dtm'",
        ),
        (
            lambda: replace_norms(vit(), None),
            "norm must be one of ln, dtn, rms, dyt, bn, in, gn, scale, or a factory; got None",
        ),
        (
            lambda: replace_norms(vit(), "rms", form="paper"),
            "form='paper' is an option of 'dtn' alone, but norm='rms'",
        ),
        (
            lambda: replace_norms(vit(), "dtn", last_plain=5),
            "last_plain must be between 0 and the 4 blocks of the backbone, got 5",
        ),
        (
            lambda: replace_norms(swin(embed_dim=9, num_heads=(2, 3), head_dim=4), "dtn"),
            "dim=9 does not split into num_heads=2 heads: dim must be at least 2 and a multiple "
            "of num_heads",
        ),
        (
            lambda: [replace_norms(model, "rms") for model in [vit()] * 2],
            "blocks.0.norm1 is RMSNorm, not a LayerNorm: norms are replaced once, in a backbone "
            "built with plain LayerNorm",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()


def test_a_refused_model_is_left_unchanged():
    model = vit(embed_dim=24)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="does not divide"):
        replace_norms(model, "dtn", pool_to=5)
    assert [type(module) for module in model.modules()] == before
