"""Views against reference arrays, the paper's recursion and their invariants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.visualization.capture import capture
from triptych.visualization.filters import PatchFilters, patch_filters
from triptych.visualization.rollout import attention_rollout
from triptych.visualization.views import (
    deep_views,
    embedding_row,
    for_display,
    global_views,
    local_views,
    patches_of,
    stage_views,
)

VIEW = {"atol": 1e-5, "rtol": 0}


def test_level_zero_views_equal_the_reference(vit, forward, view_reference):
    filters = patch_filters(vit)
    index = view_reference["filters_level0"].tolist()
    views = global_views(forward["x"], filters, index)
    torch.testing.assert_close(views, view_reference["view_level0"], **VIEW)
    shown = (for_display(views) * 255).to(torch.uint8).int()
    assert (shown - view_reference["view_level0_display"].int()).abs().max() <= 1
    shown = (for_display(filters.weight[index]) * 255).to(torch.uint8).int()
    assert (shown - view_reference["filter_display"].int()).abs().max() <= 1


def test_views_sum_to_the_embedding(vit, forward, view_reference):
    """Σ local view + bias + position = coordinate of the token at level 0."""
    filters = patch_filters(vit)
    views = local_views(forward["x"], filters, range(filters.count))
    sums = views.sum((3, 4, 5)).transpose(1, 2)
    torch.testing.assert_close(sums, view_reference["patch_dot"], atol=1e-5, rtol=1e-4)
    tokens = sums + vit.patch_embed.proj.bias.detach() + vit.pos_embed.detach()[:, 1:]
    torch.testing.assert_close(tokens, forward["embedding_output"][:, 1:], atol=2e-5, rtol=1e-4)


def test_deep_views_equal_the_reference(vit, vit_capture, forward, view_reference):
    views = deep_views(vit_capture, forward["x"], patch_filters(vit))
    index = view_reference["filters_deep"].tolist()
    assert views.levels == 5
    for row, token in enumerate(view_reference["tokens"].tolist()):
        for level in range(4):
            made = views.view(level + 1, token, index)[0]
            golden = view_reference["view_deep"][row, :, level]
            torch.testing.assert_close(made, golden, **VIEW)


@pytest.mark.parametrize("residual", [True, False])
def test_deep_views_follow_the_recursion(residual, make_family, family_images):
    """Whole canvases summed level by level, the class token's canvas zero at level 0."""
    model = make_family("vit")
    captured = capture(model, family_images)
    filters = patch_filters(model)
    views = deep_views(captured, family_images, filters, residual=residual)
    canvases = torch.stack([views.view(0, token, [3])[0, 0] for token in range(65)])
    assert not canvases[0].any()
    for level, attention in enumerate(captured.attention()[0].mean(1), start=1):
        mixing = attention + torch.eye(65) if residual else attention
        mixing = mixing / mixing.sum(1, keepdim=True)
        canvases = torch.einsum("ik,kcyx->icyx", mixing, canvases)
        for token in (0, 5, 64):
            torch.testing.assert_close(views.view(level, token, [3])[0, 0], canvases[token])


def test_a_patch_keeps_its_number_when_a_class_token_joins(make_family, family_images):
    model = make_family("released_vit")
    views = deep_views(capture(model, family_images), family_images, patch_filters(model))
    assert [views.token_of(level, 7) for level in range(5)] == [7, 7, 7, 8, 8]
    for level in range(5):
        weights = views.weights(level, views.token_of(level, 7))
        assert weights[0].argmax() == 7
    assert views.weights(3, 0).sum() > 0


@settings(max_examples=25)
@given(st.integers(0, 63), st.integers(0, 2**20), st.booleans())
def test_untouched_patches_keep_their_views_bit_for_bit(patch, seed, overlapping):
    generator = torch.Generator().manual_seed(seed)
    size, padding = ((7, 7), (3, 3)) if overlapping else ((4, 4), (0, 0))
    filters = PatchFilters(torch.randn(6, 3, *size, generator=generator), (4, 4), padding)
    images = torch.randn(1, 3, 32, 32, generator=generator)
    occluded = torch.rand(64, generator=generator) < 0.5
    occluded[patch] = False
    pixels = occluded.view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    dark = images.masked_fill(pixels, -1.0)
    row, col = 4 * (patch // 8), 4 * (patch % 8)
    before, after = (global_views(one, filters, [0, 5]) for one in (images, dark))
    if overlapping:  # a view reaches into its neighbours; equal where those are untouched
        seen = patches_of(pixels.float()[None, None].expand(1, 3, -1, -1), filters)[0]
        untouched = ~seen.flatten(1).any(1)
        before, after = (local_views(one, filters, [0, 5]) for one in (images, dark))
        assert torch.equal(before[:, :, untouched], after[:, :, untouched])
    else:
        square = (..., slice(row, row + 4), slice(col, col + 4))
        assert torch.equal(before[square], after[square])


def test_shuffled_patches_carry_their_views_along(vit, forward):
    filters = patch_filters(vit)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    blocks = forward["x"].unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    shuffled = (
        blocks[:, :, order].unflatten(2, (8, 8)).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 64, 64)
    )
    plain, moved = (local_views(one, filters, [2]) for one in (forward["x"], shuffled))
    assert torch.equal(plain[:, :, order], moved)


def test_embedding_row_is_the_column_of_local_views(vit, forward):
    filters = patch_filters(vit)
    row = embedding_row(forward["x"][1], filters, 9)
    views = local_views(forward["x"][1:], filters, range(48))
    assert torch.equal(row, views[0, :, 9])
    assert torch.equal(embedding_row(forward["x"][1], filters, 9, [4, 2]), row[[4, 2]])


def test_tiled_and_folded_views_agree(make_family, family_images):
    filters = patch_filters(make_family("vit"))
    weights = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    tiled = global_views(family_images, filters, [1, 3], weights)
    columns = local_views(family_images, filters, [1, 3]) * weights[:, None, :, None, None, None]
    folded = torch.nn.functional.fold(
        columns.flatten(0, 1).flatten(2).transpose(1, 2), (32, 32), 4, stride=4
    ).view_as(tiled)
    torch.testing.assert_close(tiled, folded)


def test_swin_effective_filters_equal_the_reference(swin, hier):
    filters = patch_filters(swin, 1)
    torch.testing.assert_close(filters.weight, hier["effective_filter_stage2"], **VIEW)
    assert (filters.size, filters.stride, filters.padding) == ((8, 8), (8, 8), (0, 0))


LINEAR = {
    "swin": ["patch_embed.proj", "layers.1.downsample"],
    "twins_svt": ["patch_embeds.0.proj", "patch_embeds.1.proj"],
    "pvt": ["patch_embed1.proj", "patch_embed2.proj", "patch_embed3.proj"],
    "pvt_v2": ["patch_embed.proj", "stages.1.downsample.proj"],
}


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_effective_filters_are_the_composed_maps(name, make_family, family_images):
    """With norms and biases left out, maps applied in turn give Σ of the local views."""
    model = make_family(name)
    x = family_images
    with torch.no_grad():
        for stage, path in enumerate(LINEAR[name]):
            module = model.get_submodule(path)
            if path.endswith("downsample"):
                parents = [x[:, :, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
                x = torch.einsum("oc,bcyx->boyx", module.reduction.weight, torch.cat(parents, 1))
            else:
                x = torch.nn.functional.conv2d(
                    x, module.weight, None, module.stride, module.padding
                )
            filters = patch_filters(model, stage)
            assert filters.composed == stage + 1
            sums = local_views(family_images, filters, range(filters.count)).sum((3, 4, 5))
            inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
            made = sums.unflatten(2, filters.grid((32, 32)))
            # At the border, zeros between the layers are not zeros before the first.
            where = inside if filters.padding != (0, 0) and stage else (...,)
            torch.testing.assert_close(made[where], x[where], atol=1e-4, rtol=1e-4)


def test_filters_of_levit_and_t2t_cover_their_grids(make_family, family_images):
    levit = make_family("levit").eval()
    filters = patch_filters(levit)
    assert (filters.size, filters.stride, filters.grid((32, 32))) == ((15, 15), (8, 8), (4, 4))
    with torch.no_grad():
        x = family_images
        for conv in (levit.stem.conv1, levit.stem.conv2, levit.stem.conv3):
            scale = conv.bn.weight / (conv.bn.running_var + conv.bn.eps).sqrt()
            x = conv.linear(x) * scale[:, None, None]
    sums = local_views(family_images, filters, range(filters.count)).sum((3, 4, 5))
    made = sums.unflatten(2, (4, 4))[..., 1:-1, 1:-1]
    torch.testing.assert_close(made, x[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)
    with pytest.raises(
        ValueError,
        match=r"^stage=1 has no filters in a Levit; linear maps lead to the stages 0 to 0$",
    ):
        patch_filters(levit, 1)
    t2t = make_family("t2t_vit")
    for stage, grid in enumerate([(16, 16), (8, 8), (8, 8)]):
        assert patch_filters(t2t, stage).grid((32, 32)) == grid


def test_every_family_has_deep_views(family, make_family, family_images):
    model = make_family(family)
    captured = capture(model, family_images)
    views = deep_views(captured, family_images, patch_filters(model))
    for level in (0, 1, views.levels - 1):
        made = views.view(level, views.token_of(level, 2), [0, 1])
        assert made.shape == (2, 2, 3, 32, 32)
        assert made.any()


def test_views_inside_a_stage(make_family, family_images):
    model = make_family("swin")
    captured = capture(model, family_images)
    views = stage_views(captured, family_images, patch_filters(model, 1), 1)
    dense = torch.stack([b.attention_map.dense() for b in captured.blocks[2:]], 1)
    steps = attention_rollout(dense)
    torch.testing.assert_close(views.weights(2, 6), steps[:, 1, 6])
    assert views.view(2, 6, [7]).shape == (2, 1, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"^the filters have a grid of 8x8, stage 1 one of 4x4; give the filters "
    ):
        stage_views(captured, family_images, patch_filters(model, 0), 1)


def test_display_clips_and_scales_each_view_by_itself():
    views = torch.tensor([[[[1.0, -2.0]]], [[[-1.0, -3.0]]], [[[4.0, 2.0]]]])
    assert for_display(views).flatten(1).tolist() == [[1, 0], [0, 0], [1, 0.5]]


def test_bad_requests_get_one_sentence(make_family, family_images):
    model = make_family("vit")
    filters = patch_filters(model)
    views = deep_views(capture(model, family_images), family_images, filters)
    for call, sentence in [
        (lambda: global_views(family_images, filters, [16]), r"^filters \[16\] must be some of"),
        (lambda: embedding_row(family_images[0], filters, 64), r"^patch=64 must be one of the 64 "),
        (lambda: views.weights(3, 0), r"^level=3 must be 0 to 2$"),
        (lambda: views.weights(1, 65), r"^token=65 must be 0 to 64 at level 1$"),
        (
            lambda: global_views(family_images, filters, [0], torch.ones(2, 65)),
            r"^weights have shape \(2, 65\); 2 images of 8x8 patches need \(2, 64\)$",
        ),
    ]:
        with pytest.raises(ValueError, match=sentence):
            call()
