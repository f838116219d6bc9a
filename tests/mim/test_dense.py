from __future__ import annotations

import pytest
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.backbones import ReleasedPvt
from triptych.mim.dense import DenseMaskedEncoder


def swin():
    return SwinTransformer(
        img_size=(16, 24), patch_size=2, in_chans=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=4, num_classes=0,
    ).eval()  # fmt: skip


def vit(**options):
    return VisionTransformer(
        img_size=(16, 24), patch_size=4, in_chans=2, embed_dim=16, depth=2, num_heads=2,
        num_classes=0, **options,
    ).eval()  # fmt: skip


PYRAMID = {
    "embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "depths": (1, 2),
    "sr_ratios": (2, 1), "num_classes": 3,
}  # fmt: skip


def twins(window=None):
    windows = None if window is None else (window, window)
    return Twins(img_size=(16, 24), patch_size=2, in_chans=2, wss=windows, **PYRAMID).eval()


def pvt():
    return ReleasedPvt(image_size=(16, 24), patch_size=2, channels=2, **PYRAMID).eval()


def pvt_v2():
    return PyramidVisionTransformerV2(in_chans=2, **PYRAMID).eval()


# What embeds the patches of the first stage, and what ends the last one.
ENDS = {
    "svt": (lambda: twins(3), "patch_embeds.0", "norm"),
    "pcpvt": (twins, "patch_embeds.0", "norm"),
    "pvt": (pvt, "patch_embed1", "norm"),
    "pvt_v2": (pvt_v2, "patch_embed", "stages.1.norm"),
}


@pytest.fixture(params=ENDS)
def pyramid(request):
    build, embed, end = ENDS[request.param]
    torch.manual_seed(0)
    backbone = build()
    encoder = DenseMaskedEncoder(backbone, image_size=(16, 24))
    nn.init.normal_(encoder.mask_token)
    return backbone, encoder, backbone.get_submodule(embed), backbone.get_submodule(end)


def whole(backbone, end):
    """The tokens of the last stage when the backbone classifies the images."""
    seen = []
    handle = end.register_forward_hook(lambda *call: seen.append(call[2]))
    backbone(images())
    handle.remove()
    return seen[0][:, 1:] if isinstance(backbone, ReleasedPvt) else seen[0]


def test_a_pyramid_with_nothing_hidden_is_the_backbone(pyramid):
    backbone, encoder, _, end = pyramid
    rows, columns = encoder.unit_grid
    with torch.no_grad():
        features = encoder(images(), torch.zeros(rows * columns, dtype=torch.bool))
        assert torch.equal(features, whole(backbone, end))


def test_hidden_patches_of_a_pyramid_are_the_token(pyramid):
    """The backbone itself, with the output of its patch embedding exchanged."""
    backbone, encoder, embed, end = pyramid
    rows, columns = encoder.unit_grid
    mask, unit = masks(rows * columns), encoder.unit // encoder.patch
    hidden = mask.view(3, rows, columns).repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    pixels = hidden.repeat_interleave(encoder.patch, 1).repeat_interleave(encoder.patch, 2)
    seen = images().masked_fill(pixels[:, None], 0)

    def exchange(_module, _inputs, output):
        x, *rest = output if isinstance(output, tuple) else (output,)
        absent = hidden.view(*x.shape[:-1], 1)
        kept = x * ~absent + encoder.mask_token * absent
        return (kept, *rest) if rest else kept

    with torch.no_grad():
        features = encoder(images(), mask)
        assert torch.equal(features, encoder(images().masked_fill(pixels[:, None], 7.0), mask))
        darken = embed.register_forward_pre_hook(lambda *_: (seen,))
        handle = embed.register_forward_hook(exchange)
        expected = whole(backbone, end)
        handle.remove()
        darken.remove()
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def images():
    return torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))


def masks(units):
    return torch.rand(3, units, generator=torch.Generator().manual_seed(1)) < 0.6


@pytest.mark.parametrize(("build", "units"), [(swin, 24), (vit, 24)])
def test_with_nothing_hidden_it_is_the_backbone(build, units):
    backbone = build()
    encoder = DenseMaskedEncoder(backbone)
    with torch.no_grad():
        features = encoder(images(), torch.zeros(units, dtype=torch.bool))
        dense = backbone.forward_features(images())
    dense = dense.flatten(1, 2) if dense.ndim == 4 else dense[:, backbone.num_prefix_tokens :]
    assert torch.equal(features, dense)


def test_hidden_patches_of_swin_are_the_token():
    backbone = swin()
    encoder = DenseMaskedEncoder(backbone)
    nn.init.normal_(encoder.mask_token)
    mask = masks(24)
    hidden = mask.view(3, 4, 6, 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    with torch.no_grad():
        embedded = backbone.patch_embed(images())
        embedded = embedded * ~hidden + encoder.mask_token * hidden
        expected = backbone.norm(backbone.layers(embedded)).flatten(1, 2)
        torch.testing.assert_close(encoder(images(), mask), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_hidden_patches_of_a_vit_are_the_token_at_their_positions(dynamic):
    backbone = vit(dynamic_img_size=dynamic)
    encoder = DenseMaskedEncoder(backbone, unit=8)
    nn.init.normal_(encoder.mask_token)
    assert encoder.unit_grid == (2, 3)
    assert encoder.feature_grid == (4, 6)
    mask = masks(6)
    hidden = mask.view(3, 2, 3).repeat_interleave(2, 1).repeat_interleave(2, 2).view(3, 24, 1)
    with torch.no_grad():
        patches = backbone.patch_embed(images()).reshape(3, 24, 16)
        patches = patches * ~hidden + encoder.mask_token * hidden
        x = torch.cat((backbone.cls_token.expand(3, -1, -1), patches), 1) + backbone.pos_embed
        expected = backbone.norm(backbone.blocks(x))[:, 1:]
        torch.testing.assert_close(encoder(images(), mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", [swin, vit])
def test_hidden_pixels_do_not_matter(build):
    encoder = DenseMaskedEncoder(build())
    mask = masks(24)
    hidden = mask.view(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        clean = encoder(images(), mask)
        assert torch.equal(clean, encoder(images().masked_fill(hidden, 7.0), mask))


def test_checkpointing_changes_nothing():
    backbone = vit()
    encoder = DenseMaskedEncoder(backbone)
    gradients = []
    for enabled in (False, True):
        backbone.set_grad_checkpointing(enabled)
        encoder.zero_grad()
        encoder(images(), masks(24)).square().sum().backward()
        gradients.append(backbone.patch_embed.proj.weight.grad.clone())
    assert torch.equal(*gradients)


def test_errors():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DenseMaskedEncoder(nn.Linear(2, 2))
    assert str(error.value) == (
        "no dense masked encoder for Linear; there is one for timm's SwinTransformer, "
        "VisionTransformer, Twins and PyramidVisionTransformerV2, and our ReleasedPvt"
    )
    for unit in (3, 6, 12):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            DenseMaskedEncoder(vit(), unit=unit)
        assert str(error.value) == (
            f"mask unit of {unit} pixels must be a multiple of the patch of 4 and divide the image "
            f"of 16x24"
        )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DenseMaskedEncoder(vit())(images(), masks(23))
    assert str(error.value) == (
        "mask must be bool with shape (24,) or (3, 24), got torch.bool (3, 23)"
    )
