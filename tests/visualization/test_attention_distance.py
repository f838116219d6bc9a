"""Attention distances and entropy against reference arrays and the definition."""

import math

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from triptych.visualization.attention_distance import (
    attention_distances,
    attention_entropy,
    distance_rows,
    mean_attention_distance,
    token_distances,
    uniform_distance,
)
from triptych.visualization.capture import capture


def test_patch_distances_equal_the_reference(attribution):
    distances = token_distances((8, 8), (8.0, 8.0))
    torch.testing.assert_close(distances, attribution["patch_distance_px"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("renormalise", "key"), [(False, "raw"), (True, "renorm")])
def test_dense_distances_equal_the_reference(forward, attribution, renormalise, key):
    for block in range(4):
        distance = mean_attention_distance(
            forward["attn"][:, block],
            (8, 8),
            prefix_tokens=1,
            stride=(8.0, 8.0),
            renormalise=renormalise,
        )
        golden = attribution[f"attn_distance_{key}"][:, block]
        torch.testing.assert_close(distance, golden, atol=0, rtol=1e-5)


def test_vit_blocks_equal_the_reference(vit_capture, attribution):
    blocks = attention_distances(vit_capture)
    for attribute, key in [
        ("raw_pixels", "attn_distance_raw"),
        ("renormalised_pixels", "attn_distance_renorm"),
        ("entropy", "attn_entropy"),
    ]:
        values = torch.stack([getattr(block, attribute) for block in blocks], dim=1)
        torch.testing.assert_close(values, attribution[key], atol=0, rtol=1e-5)
    steps = torch.stack([block.raw_steps for block in blocks], dim=1)
    torch.testing.assert_close(steps * 8, attribution["attn_distance_raw"], atol=0, rtol=1e-5)


def test_swin_blocks_equal_the_reference(swin_capture, hier):
    blocks = attention_distances(swin_capture)
    for block, name in zip(blocks, ("s0b0", "s0b1", "s1b0", "s1b1"), strict=True):
        golden = hier[f"{name}/attn_distance_px"]
        torch.testing.assert_close(block.raw_pixels[0], golden, atol=0, rtol=1e-5)
        torch.testing.assert_close(block.renormalised_pixels[0], golden, atol=0, rtol=1e-5)


def test_window_form_equals_the_dense_form(swin_capture):
    for block, distances in zip(
        swin_capture.blocks, attention_distances(swin_capture), strict=True
    ):
        dense = block.attention_map.dense()
        expected = mean_attention_distance(dense, block.grid)
        torch.testing.assert_close(distances.raw_steps, expected)
        torch.testing.assert_close(distances.entropy, attention_entropy(dense))


def test_padding_is_neither_query_nor_key():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=24, patch_size=4, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4,
        num_classes=3,
    )  # fmt: skip
    captured = capture(model, torch.randn(2, 3, 24, 24))  # 6 x 6 tokens in windows of 4
    for block, distances in zip(captured.blocks, attention_distances(captured), strict=True):
        dense = block.attention_map.dense()
        expected = mean_attention_distance(dense, (6, 6), renormalise=True)
        torch.testing.assert_close(distances.renormalised_steps, expected)
    first = attention_distances(captured)[0]
    assert bool((first.raw_steps < first.renormalised_steps).all())


@pytest.mark.parametrize(("side", "steps"), [(14, 7.281), (7, 3.609)])
def test_uniform_attention_has_the_published_distance(side, steps):
    assert round(uniform_distance((side, side)), 3) == steps
    uniform = torch.full((1, 2, side**2, side**2), 1 / side**2)
    distance = mean_attention_distance(uniform, (side, side))
    torch.testing.assert_close(distance, torch.full((1, 2), uniform_distance((side, side))))


def test_uniform_lines_follow_the_reach_of_the_block(vit_capture, swin_capture):
    assert math.isclose(
        attention_distances(vit_capture)[0].uniform_steps, uniform_distance((8, 8)), rel_tol=1e-5
    )
    plain, shifted, *_ = attention_distances(swin_capture)
    assert math.isclose(plain.uniform_steps, uniform_distance((4, 4)), rel_tol=1e-5)
    # Shifted by 2 on 16: per axis 3 whole windows of 4 and two cut ones of 2; tokens count alike.
    means = []
    for tall, rows in ((4, 12), (2, 4)):
        for wide, cols in ((4, 12), (2, 4)):
            means.append(uniform_distance((tall, wide)) * rows * cols / 256)
    assert math.isclose(shifted.uniform_steps, sum(means), rel_tol=1e-5)


def test_looking_only_at_oneself_is_distance_zero():
    assert mean_attention_distance(torch.eye(6).view(1, 1, 6, 6), (2, 3)).item() == 0


def test_entropy_of_uniform_and_certain_attention():
    assert math.isclose(
        attention_entropy(torch.full((1, 1, 5, 5), 0.2)).item(), math.log(5), rel_tol=1e-6
    )
    assert attention_entropy(torch.eye(5)[None, None]).item() == 0


def test_rows_hold_every_block_and_head(swin_capture):
    rows = distance_rows(swin_capture)
    heads = [(row["layer"], row["head"]) for row in rows]
    assert heads == [(1, 0), (1, 1), (2, 0), (2, 1), *[(b, h) for b in (3, 4) for h in range(4)]]
    blocks = attention_distances(swin_capture)
    assert rows[5]["distance_pixels"] == pytest.approx(blocks[2].raw_pixels[:, 1].mean().item())
    assert rows[5]["stage"] == 1


def test_wrong_grid_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^attention has shape \(1, 1, 9, 9\); 1 prefix tokens and a grid of 3x3 need "
        r"\(images, heads, 10, 10\)$",
    ):
        mean_attention_distance(torch.eye(9).view(1, 1, 9, 9), (3, 3), prefix_tokens=1)
