"""Class attention and principal components against reference arrays."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.visualization.capture import capture
from triptych.visualization.class_attention import class_attention, mass_mask
from triptych.visualization.patch_features import patch_components


def test_class_attention_and_its_mass_equal_the_reference(vit_capture, attribution):
    attention = class_attention(vit_capture)
    torch.testing.assert_close(attention[0], attribution["dino_cls_attn"], atol=2e-5, rtol=1e-4)
    assert torch.equal(mass_mask(attention[0], 0.6), attribution["dino_mask_0.6"])


def test_class_attention_needs_a_class_token(make_family, family_images):
    captured = capture(make_family("released_vit"), family_images)
    assert class_attention(captured).shape == (2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"^block blocks.1 has no class token that the head reads"):
        class_attention(captured, 1)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 1.0), st.integers(0, 2**20))
def test_mask_is_the_smallest_that_holds_the_mass(rows, cols, mass, seed):
    maps = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    mask = mass_mask(maps, mass)
    share = maps[mask].sum() / maps.sum()
    assert share >= mass - 1e-9
    weakest = maps[mask].min()
    assert share - weakest / maps.sum() < mass + 1e-9
    assert not mask.all() or (maps[~mask].numel() == 0)
    assert (maps[~mask] <= weakest).all()


def test_mass_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^mass is 0; give a fraction above 0, up to 1$"):
        mass_mask(torch.ones(2, 2), 0)


def test_components_equal_the_reference(vit, vit_capture, attribution):
    with torch.no_grad():
        encoded = vit.norm(vit_capture.blocks[-1].hidden)[:, 1:]
    found = patch_components(encoded)
    torch.testing.assert_close(found.mean, attribution["pca_mean"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.singular, attribution["pca_singular"], atol=1e-4, rtol=1e-4)
    scores = found.scores.abs().view(2, 8, 8, 3)
    torch.testing.assert_close(scores, attribution["pca_abs_scores"], atol=1e-4, rtol=1e-3)


def test_components_are_orthonormal_signed_and_apply_to_other_images():
    features = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0))
    found = patch_components(features, 4)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(4))
    assert (found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(found.of(features), found.scores)
    flipped = patch_components(-features, 4)
    torch.testing.assert_close(flipped.directions, found.directions, atol=1e-5, rtol=1e-4)
    colours = found.colours((4, 5))
    assert colours.shape == (3, 4, 5, 3)
    assert colours.min() == 0
    assert colours.max() == 1


def test_too_many_components_are_refused():
    with pytest.raises(
        ValueError, match=r"^components=5 must be 1 to 4 for 6 patches of 4 channels$"
    ):
        patch_components(torch.randn(2, 3, 4), 5)
