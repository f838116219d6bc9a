"""Capture of visible-token encoders against the dense backbone and the definition."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from triptych.mim import visible_encoder
from triptych.norms import replace_norms
from triptych.visualization.attention_distance import attention_distances
from triptych.visualization.capture import capture
from triptych.visualization.rollout import image_relevance, rollout_to_input
from triptych.visualization.visible_capture import attention_on_grid, capture_visible


def masks(units, per_sample):
    generator = torch.Generator().manual_seed(3)
    if not per_sample:
        return torch.randperm(units, generator=generator) < units * 3 // 4
    return torch.stack([torch.randperm(units, generator=generator) for _ in range(2)]) < units // 2


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_with_nothing_hidden_it_is_the_backbones_capture(name, make_family, family_images):
    model = make_family(name)
    encoder = visible_encoder(model)
    units = encoder.unit_grid[0] * encoder.unit_grid[1]
    made = capture_visible(encoder, family_images, torch.zeros(units, dtype=torch.bool))
    dense = capture(model, family_images)
    for one, other in zip(made.blocks, dense.blocks, strict=True):
        assert one.visible is None
        torch.testing.assert_close(one.hidden, other.hidden)
        torch.testing.assert_close(one.attention_map.dense(), other.attention_map.dense())
        for mine, theirs in zip(one.norms, other.norms, strict=True):
            torch.testing.assert_close(mine.after, theirs.after)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_visible_rows_sum_to_one_and_hidden_ones_are_empty(
    name, per_sample, make_family, family_images
):
    encoder = visible_encoder(make_family(name))
    mask = masks(encoder.unit_grid[0] * encoder.unit_grid[1], per_sample)
    captured = capture_visible(encoder, family_images, mask)
    torch.testing.assert_close(captured.output, encoder.eval()(family_images, mask))
    for block in captured.blocks:
        whole = attention_on_grid(block)
        repeat = block.grid[0] // encoder.unit_grid[0]
        hidden = mask.reshape(-1, *encoder.unit_grid)
        hidden = hidden.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2).flatten(1)
        for image in range(2):
            gone = hidden[image % len(hidden)]
            assert not whole[image, :, gone].any()
            assert not whole[image, :, :, gone].any()
            if block.prefix_tokens == 0:
                rows = whole[image].sum(-1)[:, ~gone]
                torch.testing.assert_close(rows, torch.ones_like(rows))


def test_visible_swin_attention_is_the_backbones_without_hidden_keys(make_family, family_images):
    """The first block: every hidden key loses its share to the visible ones of its window."""
    model = make_family("swin")
    mask = masks(16, False)
    visible = capture_visible(visible_encoder(model), family_images, mask).blocks[0]
    whole = capture(model, family_images).blocks[0].attention_map.dense()
    gone = mask.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    expected = whole * ~gone * ~gone[:, None]
    expected = expected / expected.sum(-1, keepdim=True).clamp_min(1e-9)
    torch.testing.assert_close(attention_on_grid(visible), expected)


@pytest.mark.parametrize("lattice", ["tokens", "backbone", "published"])
def test_grids_that_are_no_multiple_of_the_window(lattice):
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=48, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=5,
        num_classes=3,
    )  # fmt: skip
    encoder = visible_encoder(model, lattice=lattice)
    captured = capture_visible(encoder, torch.randn(2, 3, 48, 48), masks(36, True))
    for step in rollout_to_input(captured):
        torch.testing.assert_close(step.sum(-1), torch.ones(step.shape[:-1]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_rollout_and_relevance_stay_on_visible_regions(per_sample, make_family, family_images):
    encoder = visible_encoder(make_family("swin"))
    mask = masks(16, per_sample)
    captured = capture_visible(encoder, family_images, mask)
    for step, block in zip(rollout_to_input(captured), captured.blocks, strict=True):
        assert step.shape[1] == block.hidden.shape[1]
        torch.testing.assert_close(step.sum(-1), torch.ones(step.shape[:-1]))
    relevance = image_relevance(captured)
    torch.testing.assert_close(relevance.sum((1, 2)), torch.ones(2))
    hidden = mask.reshape(-1, 4, 4).expand(2, -1, -1)
    hidden = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert not relevance[hidden].any()
    assert (relevance[~hidden] > 0).all()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_dynamic_token_norm_is_captured_on_visible_tokens(name, make_family, family_images):
    model = make_family(name)
    replace_norms(model, "dtn", last_plain=0)
    encoder = visible_encoder(model)
    mask = masks(encoder.unit_grid[0] * encoder.unit_grid[1], False)
    captured = capture_visible(encoder, family_images, mask)
    for block in captured.blocks:
        assert [norm.kind for norm in block.norms] == ["DynamicTokenNorm"] * 2
        assert block.norms[0].before.shape == block.hidden.shape


def test_distances_of_visible_tokens_are_refused(make_family, family_images):
    captured = capture_visible(visible_encoder(make_family("vit")), family_images, masks(64, False))
    with pytest.raises(
        ValueError,
        match=r"^block blocks.0 ran on visible tokens alone, whose distances depend on the mask; ",
    ):
        attention_distances(captured)


def test_registers_are_kept(family_images):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, reg_tokens=2, num_classes=3
    )
    captured = capture_visible(visible_encoder(model), family_images, masks(16, False))
    assert captured.prefix_tokens == 3
    assert captured.blocks[0].hidden.shape == (2, 3 + 4, 16)
