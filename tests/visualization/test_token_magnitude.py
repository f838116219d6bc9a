"""Token magnitudes and their variation."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import DynamicTokenNorm, replace_norms
from triptych.visualization.capture import capture
from triptych.visualization.token_magnitude import (
    coefficient_of_variation,
    head_norms,
    magnitude_rows,
    token_magnitudes,
)


def test_token_norms_equal_the_reference(vit_capture, attribution):
    norms = [head_norms(block.hidden, 1)[:, 0] for block in vit_capture.blocks]
    torch.testing.assert_close(torch.stack(norms, 1), attribution["token_norm"], atol=0, rtol=1e-5)


def test_heads_split_the_channels_in_order():
    tokens = torch.tensor([[[3.0, 4.0, 0.0, 2.0], [0.0, 1.0, 6.0, 8.0]]])
    assert head_norms(tokens, 2).tolist() == [[[5.0, 1.0], [2.0, 10.0]]]


def test_layer_norm_gives_every_token_the_same_length():
    tokens = torch.randn(2, 9, 32) * torch.rand(2, 9, 1).exp() * 5
    lengths = head_norms(nn.LayerNorm(32, elementwise_affine=False)(tokens), 1)
    torch.testing.assert_close(lengths, torch.full((2, 1, 9), 32**0.5), atol=1e-3, rtol=0)
    assert bool((coefficient_of_variation(lengths) < 1e-4).all())
    assert bool((coefficient_of_variation(head_norms(tokens, 1)) > 0.1).all())


def test_dynamic_token_norm_keeps_variation_that_layer_norm_removes():
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 32) * torch.randn(2, 16, 1).exp()
    norm = DynamicTokenNorm(32, 4, (4, 4), form="paper")
    with torch.no_grad():
        kept = coefficient_of_variation(head_norms(norm(tokens), 1))
    flat = coefficient_of_variation(head_norms(nn.LayerNorm(32)(tokens), 1))
    assert bool((kept > 0.1).all())
    assert bool((flat < 1e-3).all())


def test_variation_is_population_deviation_over_mean():
    assert coefficient_of_variation(torch.tensor([1.0, 3.0])).item() == 0.5


def test_magnitudes_leave_prefix_tokens_out(vit_capture):
    magnitudes = token_magnitudes(vit_capture)
    assert [(one.layer, one.site) for one in magnitudes[:3]] == [
        (1, "norm1"),
        (1, "norm2"),
        (2, "norm1"),
    ]
    first = magnitudes[0]
    assert first.before.shape == (2, 4, 64)
    before = vit_capture.blocks[0].norms[0].before[:, 1:]
    assert torch.equal(first.before, head_norms(before, 4))
    ratio = first.cv_after.mean() / first.cv_before.mean()
    assert first.cv_ratio == pytest.approx(ratio.item())


def test_rows_name_the_norm_of_each_block():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=3
    )
    replace_norms(model, "dtn", last_plain=1)
    rows = magnitude_rows(token_magnitudes(capture(model, torch.randn(2, 3, 16, 16))))
    assert len(rows) == 3 * 2 * 2
    kinds = [(row["layer"], row["norm"]) for row in rows[:: 2 * 2]]
    assert kinds == [(1, "DynamicTokenNorm"), (2, "DynamicTokenNorm"), (3, "LayerNorm")]


def test_bad_input_gets_one_sentence(vit):
    with pytest.raises(
        ValueError,
        match=r"^10 channels do not divide into 3 heads; give a divisor of the number of channels$",
    ):
        head_norms(torch.ones(1, 2, 10), 3)
    captured = capture(vit, torch.randn(1, 3, 64, 64), norms=False)
    with pytest.raises(ValueError, match=r"^no norms were captured with norms=False; "):
        token_magnitudes(captured)
