from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.mim.masks import random_unit_mask
from triptych.mim.visible import visible_encoder
from triptych.norms import DynamicTokenNorm

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1},
    "no_prefix": {"class_token": False, "global_pool": "avg"},
    "no_positions": {"pos_embed": "none"},
    "pre_norm": {"pre_norm": True},
    "layer_scale": {"init_values": 0.5, "qk_norm": True},
    "pooled_norm": {"global_pool": "avg"},
}


def small_vit(image=(16, 24), **options):
    return VisionTransformer(
        img_size=image,
        patch_size=4,
        in_chans=2,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        **options,
    )


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw_mask(ratio, batch, per_sample=True, units=24):
    generator = torch.Generator().manual_seed(1)
    return random_unit_mask(units, ratio, batch, generator=generator, per_sample=per_sample)


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    hidden=st.integers(0, 23),
    per_sample=st.booleans(),
)
def test_equals_the_dense_backbone_without_the_hidden_keys(
    randomize, dense_vit, variant, hidden, per_sample
):
    model = randomize(small_vit(**VARIANTS[variant]))
    encoder = visible_encoder(model)
    images, mask = randn(3, 2, 16, 24), draw_mask(hidden / 24, 3, per_sample)
    with torch.no_grad():
        latents = encoder(images, mask)
        assert latents.shape == (3, 24 - hidden, 16)
        torch.testing.assert_close(latents, dense_vit(model, images, mask), atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_with_nothing_hidden_equals_timm_itself(randomize, variant):
    model = randomize(small_vit(**VARIANTS[variant]))
    images = randn(2, 2, 16, 24)
    with torch.no_grad():
        dense = model.forward_features(images)[:, model.num_prefix_tokens :]
        latents = visible_encoder(model)(images, torch.zeros(24, dtype=torch.bool))
    torch.testing.assert_close(latents, dense, atol=1e-12, rtol=0)


def test_images_of_another_size_where_the_backbone_takes_them(randomize, dense_vit):
    model = randomize(small_vit(dynamic_img_size=True))
    encoder = visible_encoder(model)
    images, mask = randn(2, 2, 24, 24), draw_mask(0.5, 2, units=36)
    with torch.no_grad():
        latents = encoder(images, mask)
        torch.testing.assert_close(latents, dense_vit(model, images, mask), atol=1e-12, rtol=0)


def test_hidden_pixels_are_not_read(randomize):
    encoder = visible_encoder(randomize(small_vit()))
    images, mask = randn(3, 2, 16, 24), draw_mask(0.75, 3)
    hidden = mask.view(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        clean = encoder(images, mask)
        assert torch.equal(clean, encoder(images.masked_fill(hidden, torch.nan), mask))


def test_dynamic_token_norm_is_told_which_tokens_exist(randomize):
    model = small_vit()
    model.blocks[0].norm1 = DynamicTokenNorm(16, 2, (4, 6), prefix_tokens=1)
    randomize(model)
    norm = model.blocks[0].norm1
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images, mask = randn(3, 2, 16, 24), draw_mask(0.5, 3)
    with torch.no_grad():
        visible_encoder(model)(images, mask)
        dense = norm(model._pos_embed(model.patch_embed(images)), visible=~mask)
    kept = torch.nn.functional.pad(~mask, (1, 0), value=True)
    expected = dense[kept].view(3, 13, 16)
    torch.testing.assert_close(seen[0], expected, atol=1e-12, rtol=0)


def test_gradients_reach_the_shared_modules(randomize):
    model = randomize(small_vit())
    visible_encoder(model)(randn(2, 2, 16, 24), draw_mask(0.5, 2)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.startswith("head.")] == []


def test_gradient_checkpointing_changes_nothing(randomize):
    model = randomize(small_vit())
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        visible_encoder(model)(randn(2, 2, 16, 24), draw_mask(0.5, 2)).square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    assert torch.equal(*gradients)


def test_parts_that_drop_or_mix_tokens_are_refused():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(small_vit(patch_drop_rate=0.1))
    assert str(error.value) == (
        "the backbone drops patches by itself; build it with patch_drop_rate=0"
    )
    model = small_vit()
    model.blocks[1] = nn.Identity()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(model)
    assert str(error.value) == "block 1 is a Identity; visible tokens need timm's Block"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(
            VisionTransformer(img_size=16, patch_size=(4, 8), embed_dim=8, depth=1, num_heads=1)
        )
    assert str(error.value) == ("VisionTransformer has patches of 4x8 pixels; they must be square")
