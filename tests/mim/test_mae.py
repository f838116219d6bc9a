from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.mim.decoder import DecoderSettings, sincos_positions
from triptych.mim.mae import MAE, PUBLISHED_DECODER
from triptych.mim.masks import sample_masks
from triptych.mim.objective import patchify

DECODER = DecoderSettings(dim=16, depth=2, num_heads=2)


def vit(**options):
    return VisionTransformer(
        img_size=(16, 24), patch_size=4, in_chans=2, embed_dim=16, depth=2, num_heads=2,
        num_classes=3, **options,
    )  # fmt: skip


def batch():
    images = torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    return images.double(), sample_masks(24, 0.75, seed=0, epoch=0, indices=range(3))


def naive_loss(model, images, mask):
    """Section 3 on all patches, one sample at a time: tokens are dropped, put back and decoded."""
    backbone, decoder = model.backbone, model.decoder
    losses = []
    for image, hidden in zip(images, mask, strict=True):
        patches = backbone.patch_embed(image[None]) + backbone.pos_embed[:, 1:]
        x = torch.cat((backbone.cls_token + backbone.pos_embed[:, :1], patches[:, ~hidden]), 1)
        x = decoder.embed(backbone.norm(backbone.blocks(x)))
        whole = decoder.mask_token.repeat(1, len(hidden), 1)
        whole[0, ~hidden] = x[0, 1:]
        x = torch.cat((x[:, :1], whole + decoder.positions), 1)
        prediction = decoder.head(decoder.norm(decoder.blocks(x)))[0, 1:]
        target = patchify(image[None], 4)[0]
        deviation = (target.var(1, keepdim=True) + 1e-6).sqrt()
        target = (target - target.mean(1, keepdim=True)) / deviation
        losses.append((prediction - target)[hidden].square().mean())
    return torch.stack(losses).mean()


def test_it_is_the_published_arithmetic():
    torch.manual_seed(0)
    model = MAE(vit(), DECODER).double().eval()
    images, mask = batch()
    loss, expected = model(images, mask).loss, naive_loss(model, images, mask)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-12, rtol=1e-9)
    assert "encoder.backbone.cls_token" in gradients


def test_positions_are_the_fixed_ones():
    model = MAE(vit(), DECODER)
    table = model.backbone.pos_embed
    assert not table.requires_grad
    assert torch.equal(table[0, 1:], sincos_positions(16, (4, 6)))
    assert not table[0, :1].any()


def test_the_published_decoder():
    assert (PUBLISHED_DECODER.dim, PUBLISHED_DECODER.depth, PUBLISHED_DECODER.num_heads) == (
        512,
        8,
        16,
    )
    model = MAE(vit())
    assert (len(model.decoder.blocks), model.decoder.norm.normalized_shape) == (8, (512,))


def test_registers_take_part():
    torch.manual_seed(0)
    model = MAE(vit(reg_tokens=2), DECODER).double()
    images, mask = batch()
    model(images, mask).loss.backward()
    assert model.backbone.reg_token.grad.abs().max() > 0
    assert model.decoder.prefix_tokens == 3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: nn.Linear(1, 1), "MAE's encoder is timm's VisionTransformer, got a Linear"),
        (
            lambda: SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(1,),
                                    num_heads=(1,), window_size=4),
            "MAE's encoder is timm's VisionTransformer, got a SwinTransformer",
        ),
        (
            lambda: vit(pos_embed="none"),
            "MAE needs a ViT with position embeddings; this one has none",
        ),
    ],
)  # fmt: skip
def test_errors(build, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        MAE(build(), DECODER)
    assert str(error.value) == sentence
