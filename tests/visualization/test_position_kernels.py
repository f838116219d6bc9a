"""Position kernels: the columns of the dense position matrix, their moments and their Gaussians."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from triptych.norms import DynamicTokenNorm, replace_norms
from triptych.tokens import TokenGrid
from triptych.visualization.position_kernels import (
    dtn_layers,
    kernel_rows,
    mixing_ratios,
    plane_kernels,
    position_kernels,
)

HEADS = 3


def layer(grid: int | tuple[int, int], weights: list[list[float]], **options) -> DynamicTokenNorm:
    norm = DynamicTokenNorm(2 * len(weights), len(weights), grid, **options)
    with torch.no_grad():
        norm.pos_proj.weight.copy_(torch.tensor(weights))
    return norm


def numbers(limit: float) -> st.SearchStrategy[float]:
    return st.floats(-limit, limit, width=32)


@st.composite
def layers(draw) -> tuple[DynamicTokenNorm, tuple[int, int]]:
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    drawn = st.tuples(numbers(2), numbers(2), numbers(1)).map(list)
    weights = draw(st.lists(drawn, min_size=HEADS, max_size=HEADS))
    target = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return layer((height, width), weights), target


@given(layers())
def test_kernels_are_those_of_the_dense_matrix(drawn):
    norm, target = drawn
    kernels = position_kernels(norm, target)
    grid = norm.grid
    matrix_HST = norm.pos_proj.matrix(grid, torch.float64).detach()
    column_HS = matrix_HST[:, :, target[0] * grid.width + target[1]]
    torch.testing.assert_close(kernels.weights.flatten(1), column_HS, rtol=0, atol=1e-12)
    for head in range(HEADS):
        moments, second, entropy = [0.0, 0.0], 0.0, 0.0
        offsets = [(y - target[0], x - target[1]) for y in range(grid.height)
                   for x in range(grid.width)]  # fmt: skip
        shares = column_HS[head].tolist()
        for share, offset in zip(shares, offsets, strict=True):
            moments = [m + share * o for m, o in zip(moments, offset, strict=True)]
            entropy -= share * math.log(share) if share > 0 else 0.0
        for share, offset in zip(shares, offsets, strict=True):
            second += share * math.dist(offset, moments) ** 2
        assert kernels.centre[head].tolist() == pytest.approx(moments, abs=1e-10)
        assert float(kernels.width[head]) ** 2 == pytest.approx(second, abs=1e-10)
        assert float(kernels.effective[head]) == pytest.approx(math.exp(entropy), rel=1e-10)


@given(layers())
def test_moments_lie_within_the_grid(drawn):
    norm, target = drawn
    kernels = position_kernels(norm, target)
    at = torch.tensor(target) + kernels.centre
    last = torch.tensor([norm.grid.height - 1.0, norm.grid.width - 1.0])
    assert (at > -1e-9).all()
    assert (at < last + 1e-9).all()
    assert (kernels.widths <= last / 2 + 1e-9).all()
    assert (kernels.effective < norm.grid.count + 1e-6).all()
    assert (kernels.effective > 1 - 1e-9).all()
    torch.testing.assert_close(kernels.weights.sum((1, 2)), torch.ones(HEADS).double())


@given(
    st.lists(st.tuples(numbers(1.5), numbers(1.5), st.floats(-1, -0.25, width=32)), min_size=1,
             max_size=4)
)  # fmt: skip
def test_far_from_the_border_a_kernel_is_its_gaussian(weights):
    norm = layer((41, 41), [list(three) for three in weights])
    kernels = position_kernels(norm)
    centre, widths = plane_kernels(norm)
    # The sum over the lattice differs from the integral by a share of order exp(-2π²σ²).
    torch.testing.assert_close(kernels.centre, centre, rtol=0, atol=2e-3)
    torch.testing.assert_close(kernels.widths, widths, rtol=2e-3, atol=0)


def test_the_initial_heads_look_at_their_neighbours():
    norm = DynamicTokenNorm(16, 4, (9, 9))
    kernels = position_kernels(norm)
    offsets = {tuple(round(value, 1) for value in pair) for pair in kernels.centre.tolist()}
    assert offsets == {(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)}
    torch.testing.assert_close(
        kernels.widths, torch.full((4, 2), 0.5**0.5).double(), rtol=0, atol=1e-3
    )


def test_a_head_without_weights_takes_all_tokens_alike():
    norm = layer((5, 7), [[0.0, 0.0, 0.0]])
    kernels = position_kernels(norm)
    assert kernels.target == (2, 3)
    torch.testing.assert_close(kernels.weights, torch.full((1, 5, 7), 1 / 35).double())
    assert kernels.centre.abs().max() < 1e-12
    assert kernels.widths[0].tolist() == pytest.approx([2**0.5, 2.0])
    assert float(kernels.effective) == pytest.approx(35)
    assert all(value.isnan().all() for value in plane_kernels(norm))


def test_pooled_cells_share_what_they_get():
    norm = layer((8, 4), [[0.3, -0.2, -0.4]], pool_to=4)
    assert norm.cell == (2, 1)
    kernels = position_kernels(norm, (5, 1))
    matrix = norm.pos_proj.matrix(TokenGrid(4, 4), torch.float64).detach()
    column = matrix[0, :, 2 * 4 + 1].view(4, 4)
    expected = column.repeat_interleave(2, 0) / 2
    torch.testing.assert_close(kernels.weights[0], expected, rtol=0, atol=1e-12)
    centre, widths = plane_kernels(norm)
    assert centre[0].tolist() == pytest.approx([2 * -0.2 / -0.8, 0.3 / -0.8])
    assert widths[0].tolist() == pytest.approx([2 * 1.25**0.5, 1.25**0.5])


def test_a_long_sequence_needs_no_matrix():
    norm = DynamicTokenNorm(8, 2, 100_000)
    kernels = position_kernels(norm)
    assert kernels.weights.shape == (2, 1, 100_000)
    assert kernels.centre[:, 1].tolist() == pytest.approx([0.5, -0.5], abs=1e-3)
    assert kernels.widths[:, 0].tolist() == [0, 0]


def test_ratios_of_every_form():
    plain = layer((3, 3), [[0.0, 0.0, -1.0]] * 2)
    with torch.no_grad():
        plain.mean_norm_weight.copy_(torch.tensor([0.0, 1.0]))
        plain.var_norm_weight.copy_(torch.tensor([-1.0, 2.0]))
    mean, variance = mixing_ratios(plain)
    torch.testing.assert_close(mean, torch.tensor([0.0, 1.0]).double().sigmoid())
    torch.testing.assert_close(variance, torch.tensor([-1.0, 2.0]).double().sigmoid())
    mean, variance = mixing_ratios(DynamicTokenNorm(4, 2, 3, mean="token"))
    assert mean.tolist() == [1, 1]
    assert variance.tolist() == [0.5, 0.5]
    paper = DynamicTokenNorm(4, 2, 3, form="paper")
    assert [ratio.tolist() for ratio in mixing_ratios(paper)] == [[0.5, 0.5]] * 2


def test_a_target_outside_the_grid_is_refused():
    with pytest.raises(ValueError, match="lies outside") as error:
        position_kernels(DynamicTokenNorm(4, 1, (3, 5)), (3, 0))
    assert str(error.value) == (
        "target (3, 0) lies outside the 3x5 grid; legal are rows 0 to 2 and columns 0 to 4"
    )


def test_rows_name_every_layer_and_head():
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=4, num_classes=3
    )
    assert dtn_layers(model) == {}
    replace_norms(model, "dtn", last_plain=2)
    found = dtn_layers(model)
    assert list(found) == ["blocks.0.norm1", "blocks.0.norm2"]
    rows = kernel_rows(found)
    assert [(row["layer"], row["head"]) for row in rows] == [
        (name, head) for name in found for head in range(4)
    ]
    first = rows[0]
    assert first["grid"] == "4x4"
    assert first["target"] == "2 2"
    weights = found["blocks.0.norm1"].pos_proj.weight[0].tolist()
    assert [first[f"weight_{name}"] for name in ("x", "y", "squared_distance")] == weights
    assert first["lambda_mean"] == 0.5
    assert first["gaussian_width_y"] == pytest.approx(0.5**0.5)
