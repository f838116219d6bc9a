"""The sites in every vision backbone, and that DTN's initialization outlives the backbone's."""

from __future__ import annotations

import re

import pytest
import torch
from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import NORM_NAMES, BatchNorm, DynamicTokenNorm, Replacement, replace_norms
from triptych.norms.position_weights import PositionWeights, locality_weights
from triptych.norms.sites.levit import TokenLinearNorm


def vit():
    return VisionTransformer(
        img_size=(32, 64), patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=3
    )


def swin():
    return SwinTransformer(
        img_size=(32, 64), embed_dim=16, depths=(2, 1), num_heads=(4, 4), window_size=4
    )


def twins(wss=(4, 4)):
    return Twins(
        img_size=(32, 64),
        embed_dims=(16, 32),
        depths=(2, 1),
        num_heads=(4, 4),
        mlp_ratios=(2, 2),
        sr_ratios=(2, 1),
        wss=wss,
        num_classes=3,
    )


def pvt_v2():
    return PyramidVisionTransformerV2(
        embed_dims=(16, 32), depths=(2, 1), num_heads=(4, 4), sr_ratios=(2, 1), mlp_ratios=(2, 2)
    )


def levit(**options):
    return Levit(
        img_size=(32, 64),
        embed_dim=(32, 48),
        key_dim=8,
        depth=(2, 1),
        num_heads=(4, 6),
        stem_type="s8",
        num_classes=3,
        **options,
    )


PYRAMIDS = {"svt": twins, "pcpvt": lambda: twins(None), "pvt_v2": pvt_v2}
ALL = PYRAMIDS | {"vit": vit, "swin": swin, "levit": levit}
SIZE = (32, 64)


def images(batch=2):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_sites(name):
    model = PYRAMIDS[name]()
    path = "stages.{}.blocks.{}.norm{}" if name == "pvt_v2" else "blocks.{}.{}.norm{}"
    plain = sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert replace_norms(model, "dtn", image_size=SIZE) == [
        Replacement(path.format(stage, block, norm), dim, 4, grid, 0)
        for stage, block, dim, grid in (
            (0, 0, 16, (8, 16)),
            (0, 1, 16, (8, 16)),
            (1, 0, 32, (4, 8)),
        )
        for norm in (1, 2)
    ]
    made = [n for n, m in model.named_modules() if isinstance(m, DynamicTokenNorm)]
    left = sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert (len(made), left) == (6, plain - 6)
    assert model(images()).shape[0] == 2


@pytest.mark.parametrize("side", [30, 32, 36, 44, 57])
def test_pvt_v2_grids_are_those_of_its_padded_convolutions(side):
    model = pvt_v2()
    seen = []
    for stage in model.stages:
        stage.blocks[0].register_forward_hook(lambda m, inputs, y: seen.append(tuple(inputs[1])))
    model(torch.randn(1, 3, side, 64))
    sites = replace_norms(model, "dtn", image_size=(side, 64))
    assert seen == [sites[0].grid_size, sites[-1].grid_size]


def test_levit_sites():
    model = levit()
    assert replace_norms(model, "dtn") == [
        Replacement(f"stages.{stage}.blocks.{block}.{layer}.bn", dim, heads, grid, 0)
        for stage, block, heads, grid, qkv, hidden in (
            (0, 0, 4, (4, 8), 128, 64),
            (0, 1, 4, (4, 8), 128, 64),
            (1, 0, 6, (2, 4), 192, 96),
        )
        for layer, dim in (("attn.qkv", qkv), ("mlp.ln1", hidden))
    ]
    assert isinstance(model.stages[0].blocks[0].attn.qkv, TokenLinearNorm)
    block = model.stages[1].downsample
    for layer in (block.attn_downsample.kv.bn, block.mlp.ln1.bn, model.stem.conv1.bn):
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    assert isinstance(model.stages[0].blocks[0].mlp.ln2.bn, nn.BatchNorm1d)


def test_levit_heads_of_the_norm_are_those_of_the_attention():
    """Channels of one head are scaled apart: the qkv channels lie head by head."""
    model = levit()
    attention = model.stages[0].blocks[0].attn
    replace_norms(model, "dtn")
    x = torch.randn(2, 32, 128)
    q, k, v = x.view(2, 32, 4, -1).split([8, 8, 16], 3)
    assert (attention.key_dim, attention.val_dim) == (8, 16)
    together = torch.cat((q, k, v), 3)[:, :, 1]
    assert torch.equal(together, x.unflatten(2, (attention.qkv.bn.num_heads, -1))[:, :, 1])


def test_levit_keeps_its_batch_norm_and_takes_layer_norm():
    model = levit()
    assert replace_norms(model, "bn") == []
    assert isinstance(model.stages[0].blocks[0].attn.qkv.bn, nn.BatchNorm1d)
    assert len(replace_norms(model, "ln")) == 6
    assert isinstance(model.stages[0].blocks[0].attn.qkv.bn, nn.LayerNorm)


def test_levit_with_a_factory_of_batch_norms_is_unchanged():
    """The layer that lets a norm see samples apart computes the same as the one it replaces."""
    torch.manual_seed(0)
    model = levit().train()
    want = model(images())
    replace_norms(model, batch_norm)
    torch.testing.assert_close(model(images()), want)


def batch_norm(*, dim, num_heads, grid_size, prefix_tokens):
    return BatchNorm(dim)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("name", ["svt", "pvt_v2", "levit"])
def test_every_norm_trains(name, norm):
    torch.manual_seed(0)
    model = ALL[name]()
    replaced = replace_norms(model, norm, image_size=SIZE)
    assert bool(replaced) == (norm != ("bn" if name == "levit" else "ln"))
    model(images()).square().sum().backward()
    for site in replaced:
        for label, parameter in model.get_submodule(site.path).named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.isfinite().all(), label


# Each backbone's own functions that set its weights anew, called after the norm is in.
AGAIN = {
    "svt": [lambda m: m.apply(m._init_weights)],
    "pcpvt": [lambda m: m.apply(m._init_weights)],
    "pvt_v2": [lambda m: m.apply(m._init_weights)],
    "vit": [lambda m: m.init_weights(""), lambda m: m.init_weights("jax")],
    "swin": [lambda m: m.init_weights(""), lambda m: m.init_weights("jax")],
    "levit": [lambda m: m.init_weights()],
}


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("init", ["locality", "released"])
def test_position_weights_outlive_the_initialization_of_the_backbone(name, init):
    torch.manual_seed(0)
    model = ALL[name]()
    replace_norms(model, "dtn", init=init, image_size=SIZE)
    positions = [m for m in model.modules() if isinstance(m, PositionWeights)]
    assert positions
    for again in AGAIN[name]:
        again(model)
        for position in positions:
            if init == "locality":
                assert torch.equal(position.weight, locality_weights(len(position.weight)))
            else:
                assert 0 < position.weight.abs().max() < 0.2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: replace_norms(pvt_v2(), "dtn"),
            "a PVT v2 does not know its token grids; give image_size in pixels",
        ),
        (
            lambda: replace_norms(levit(use_conv=True), "dtn"),
            "norms cannot be put into a LeViT built of convolutions; build it with "
            "use_conv=False, which computes the same",
        ),
        (
            lambda: [replace_norms(model, "rms") for model in [levit()] * 2],
            "stages.0.blocks.0.attn.qkv is TokenLinearNorm, not a LinearNorm: norms are replaced "
            "once, in a LeViT as timm builds it",
        ),
        (
            lambda: [replace_norms(model, "rms") for model in [twins()] * 2],
            "blocks.0.0.norm1 is RMSNorm, not a LayerNorm: norms are replaced once, in a backbone "
            "built with plain LayerNorm",
        ),
        (
            lambda: replace_norms(twins(), "dtn", last_plain=4),
            "last_plain must be between 0 and the 3 blocks of the backbone, got 4",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()


def test_a_refused_levit_is_left_unchanged():
    model = levit(mlp_ratio=0.9)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="does not split into num_heads"):
        replace_norms(model, "dtn")
    assert [type(module) for module in model.modules()] == before
