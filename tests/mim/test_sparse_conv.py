"""Convolutions of visible tokens against dense ones on grids with zeros where tokens are hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.mim import sparse_conv_spconv
from triptych.mim.sparse_conv import convolve_cells, convolve_pixels, sparse_conv2d
from triptych.mim.sparse_conv_plan import (
    Convolution,
    plan_by_unit,
    plan_cells,
    plan_convolution,
)

GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1)),
    ((7, 7), (4, 4), (3, 3)),
    ((5, 3), (1, 1), (2, 1)),
    ((5, 3), (2, 1), (2, 1)),
    ((2, 4), (2, 4), (0, 0)),
    ((7, 7), (1, 1), (3, 3)),
    ((4, 4), (2, 2), (1, 1)),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_visible(plans: int, units: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Bool (plans, *units) with ``count`` True in each."""
    rng = np.random.default_rng(seed)
    noise = rng.random((plans, units[0] * units[1]))
    return (noise.argsort(1).argsort(1) < count).reshape(plans, *units)


def on_grid(x_BNC: Tensor, visible_PHW: Tensor, batch: int) -> Tensor:
    """Visible tokens on a grid of zeros, (B, C, H, W)."""
    visible_BHW = visible_PHW.expand(batch, -1, -1)
    grid = x_BNC.new_zeros(*visible_BHW.shape, x_BNC.shape[2])
    grid = grid.masked_scatter(visible_BHW[..., None], x_BNC)
    return grid.permute(0, 3, 1, 2)


def taken(y_BCHW: Tensor, visible_PHW: Tensor) -> Tensor:
    """Visible outputs (B, M, C) in row-major order."""
    batch = len(y_BCHW)
    y_BHWC = y_BCHW.permute(0, 2, 3, 1)
    return y_BHWC[visible_PHW.expand(batch, -1, -1)].view(batch, -1, y_BHWC.shape[3])


def spread(visible_PUV: np.ndarray, unit: tuple[int, int]) -> Tensor:
    return torch.from_numpy(visible_PUV.repeat(unit[0], axis=1).repeat(unit[1], axis=2))


def gradients(run, *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = run(*leaves)
    (y * randn(*y.shape, seed=9)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def layer(geometry, channels: int, outputs: int, groups: int, bias: bool) -> nn.Conv2d:
    kernel, stride, padding = geometry
    torch.manual_seed(3)
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=bias)
    return conv.double()


@settings(max_examples=60)
@given(data=st.data())
def test_equals_a_dense_convolution_on_zeros(data):
    geometry = data.draw(st.sampled_from(GEOMETRIES))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    conv = layer(geometry, 4, 4, groups, data.draw(st.booleans()))
    outputs = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    unit = (outputs[0] * geometry[1][0], outputs[1] * geometry[1][1])
    units = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    count = data.draw(st.integers(1, units[0] * units[1]))
    batch = data.draw(st.integers(1, 3))
    plans = data.draw(st.sampled_from([1, batch]))
    visible_PUV = draw_visible(plans, units, count, data.draw(st.integers(0, 99)))
    plan = plan_convolution(
        Convolution.of(conv), visible_PUV, (units[0] * unit[0], units[1] * unit[1])
    )
    by_unit = plan_by_unit(visible_PUV, outputs)
    x_BNC = randn(batch, count * unit[0] * unit[1], 4)
    parameters = list(conv.parameters())

    def sparse(x, *values):
        with torch.no_grad():
            copy = layer(geometry, 4, 4, groups, len(values) == 2)
        named = dict(zip(("weight", "bias"), values, strict=False))
        for name, value in named.items():
            delattr(copy, name)
            setattr(copy, name, value)
        return sparse_conv2d(copy, x, plan, by_unit, plans == 1)

    def dense(x, *values):
        grid = on_grid(x, spread(visible_PUV, unit), batch)
        bias = values[1] if len(values) == 2 else None
        y = F.conv2d(grid, values[0], bias, geometry[1], geometry[2], groups=groups)
        return taken(y, spread(visible_PUV, outputs))

    ours, expected = gradients(sparse, x_BNC, *parameters), gradients(dense, x_BNC, *parameters)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_cells_equal_a_dense_convolution_with_kernel_equal_to_stride(side, per_sample):
    conv = layer(((side, side), (side, side), (0, 0)), 3, 5, 1, True)
    visible_PUV = draw_visible(3 if per_sample else 1, (3, 2), 4, seed=1)
    cells = plan_cells(spread(visible_PUV, (4, 4)).numpy(), side)
    x_BNC = randn(3, 4 * 16, 3)

    def sparse(x):
        return convolve_cells(conv, x, cells.slots, not per_sample)

    def dense(x):
        visible_PHW = spread(visible_PUV, (4, 4))
        return taken(conv(on_grid(x, visible_PHW, 3)), visible_PHW[:, ::side, ::side])

    for got, wanted in zip(gradients(sparse, x_BNC), gradients(dense, x_BNC), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    assert torch.equal(cells.visible, spread(visible_PUV, (4, 4))[:, ::side, ::side].flatten(1))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g[0][0] != 2])
def test_pixels_equal_a_dense_convolution_of_a_masked_image(geometry, per_sample):
    conv = layer(geometry, 2, 3, 1, True)
    visible_PUV = draw_visible(3 if per_sample else 1, (3, 4), 5, seed=2)
    flat = torch.from_numpy(visible_PUV).flatten(1)
    units_PK = flat.nonzero()[:, 1].view(len(flat), -1)
    outputs = 8 // geometry[1][0], 8 // geometry[1][1]
    by_unit = plan_by_unit(visible_PUV, outputs)
    visible_PHW = spread(visible_PUV, (8, 8))

    def sparse(images):
        return convolve_pixels(conv, images, units_PK, flat, by_unit, 8)

    def dense(images):
        seen = images.masked_fill(~visible_PHW[:, None], 0)
        return taken(conv(seen), spread(visible_PUV, outputs))

    images = randn(3, 2, 24, 32)
    for got, wanted in zip(gradients(sparse, images), gradients(dense, images), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    unseen = images.masked_fill(~visible_PHW[:, None], torch.nan)
    assert torch.equal(sparse(images), sparse(unseen))


# ------------------------------------------------------------------------------------- spconv


@pytest.fixture
def spconv_on_the_host(monkeypatch):
    """spconv's CPU arithmetic, which is right with one thread and asks for a stream in vain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(sparse_conv_spconv._ops(), "get_current_stream", lambda: 0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("plans", [1, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.usefixtures("spconv_on_the_host")
def test_spconv_computes_the_same_in_the_order_of_the_tokens(geometry, plans):
    conv = layer(geometry, 4, 6, 1, True)
    outputs = (2, 1)
    unit = (outputs[0] * geometry[1][0], outputs[1] * geometry[1][1])
    visible_PUV = draw_visible(plans, (3, 4), 5, seed=4)
    grid = (3 * unit[0], 4 * unit[1])
    plan = plan_convolution(Convolution.of(conv), visible_PUV, grid, pairs=True)
    by_unit = plan_by_unit(visible_PUV, outputs)
    x_BNC = randn(3, 5 * unit[0] * unit[1], 4)

    def with_spconv(x, weight, bias):
        shared = x if plans == 1 else x.flatten(0, 1)[None]
        return sparse_conv_spconv.convolve(shared, weight, bias, plan).reshape(3, -1, 6)

    def with_tiles(x, weight, bias):
        del conv.weight, conv.bias
        conv.weight, conv.bias = weight, bias
        return sparse_conv2d(conv, x, plan, by_unit, plans == 1)

    inputs = (x_BNC, conv.weight.detach(), conv.bias.detach())
    with_library = gradients(with_spconv, *inputs)
    for got, wanted in zip(with_library, gradients(with_tiles, *inputs), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g[0] == (3, 3)])
def test_index_pairs_are_those_of_spconv(geometry):
    conv = layer(geometry, 4, 6, 1, True)
    unit = (2 * geometry[1][0], 2 * geometry[1][1])
    visible_PUV = draw_visible(2, (3, 4), 5, seed=5)
    visible = spread(visible_PUV, unit)
    grid = tuple(visible.shape[1:])
    plan = plan_convolution(Convolution.of(conv), visible_PUV, grid, pairs=True)
    ops, native = sparse_conv_spconv._ops(), sparse_conv_spconv._native()
    places = visible.nonzero().int().contiguous()
    found, pairs, counts = ops.get_indice_pairs(
        places, 2, grid, native, list(geometry[0]), list(geometry[1]), list(geometry[2]), [1, 1],
        [0, 0],
    )  # fmt: skip
    shown = spread(visible_PUV, (2, 2))
    number = torch.full(shown.shape, -1)
    number[shown] = torch.arange(int(shown.sum()))
    token = number[tuple(found.long().T)]  # of each of spconv's outputs; it has hidden ones too
    for position, count in enumerate(counts.tolist()):
        theirs = torch.stack((pairs[0, position, :count].long(), token[pairs[1, position, :count]]))
        theirs = theirs[:, theirs[1] >= 0]
        ours = plan.pairs[:, position, : plan.pair_counts[position]].long()
        assert {tuple(pair) for pair in ours.T.tolist()} == {
            tuple(pair) for pair in theirs.T.tolist()
        }


def test_without_a_device_spconv_is_not_asked():
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert not sparse_conv_spconv.has_cuda_build()


# ------------------------------------------------------------------------------ details, errors


def test_plans_move_and_keep_their_counts_on_the_host():
    conv = layer(GEOMETRIES[0], 2, 2, 1, True)
    plan = plan_convolution(Convolution.of(conv), draw_visible(1, (2, 2), 2, 0), (4, 4), pairs=True)
    moved = plan.map(lambda tensor: tensor.to("meta"))
    assert moved.tiles.is_meta
    assert moved.back.is_meta
    assert moved.pairs.is_meta
    assert not moved.pair_counts.is_meta


def test_autocast_chooses_the_precision():
    conv = layer(GEOMETRIES[0], 4, 4, 4, True).float()
    visible_PUV = draw_visible(1, (3, 3), 4, 0)
    plan = plan_convolution(Convolution.of(conv), visible_PUV, (6, 6))
    by_unit = plan_by_unit(visible_PUV, (2, 2))
    x_BNC = randn(2, 16, 4).float().requires_grad_()
    exact = sparse_conv2d(conv, x_BNC, plan, by_unit, True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = sparse_conv2d(conv, x_BNC, plan, by_unit, True)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
    rough.sum().backward()
    assert x_BNC.grad.dtype == torch.float32
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dilation": 2}, "a sparse convolution has dilation 1, got (2, 2)"),
        (
            {"padding": "same"},
            "a sparse convolution pads with a given number of zeros, got padding='same' and "
            "padding_mode='zeros'",
        ),
        (
            {"padding": 1, "padding_mode": "reflect"},
            "a sparse convolution pads with a given number of zeros, got padding=(1, 1) and "
            "padding_mode='reflect'",
        ),
    ],
)
def test_other_convolutions_are_refused(options, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Convolution.of(nn.Conv2d(2, 2, 3, **options))
    assert str(error.value) == sentence


def test_what_does_not_fit_is_refused():
    visible_PUV = draw_visible(1, (2, 2), 2, 0)
    for convolution, sentence in (
        (
            Convolution((3, 3), (2, 2), (1, 1)),
            "mask units of 3x3 tokens are no multiple of the stride 2x2",
        ),
        (
            Convolution((3, 3), (1, 1), (0, 0)),
            "padding 0 does not keep a kernel of 3 with stride 1 on its grid; an input of n "
            "strides must have n outputs",
        ),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            plan_convolution(convolution, visible_PUV, (6, 6))
        assert str(error.value) == sentence
    with pytest.raises(ValueError) as error:  # noqa: PT011
        plan_cells(visible_PUV, 2)
    assert str(error.value) == "a cell of 2x2 tokens is visible in part"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        plan_cells(np.ones((1, 4, 6), dtype=bool), 4)
    assert str(error.value) == "cells of 4x4 tokens do not divide a 4x6 grid"
    conv = layer(GEOMETRIES[0], 2, 2, 1, True)
    plan = plan_convolution(Convolution.of(conv), visible_PUV, (6, 6))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sparse_conv_spconv.convolve(randn(1, 18, 2), conv.weight, conv.bias, plan)
    assert str(error.value) == "the plan was made without index pairs; make it with pairs=True"
    other = layer(GEOMETRIES[6], 2, 2, 1, True)
    with pytest.raises(ValueError, match=r"^the plan is for a Convolution\(kernel=\(3, 3\)"):
        sparse_conv2d(other, randn(1, 18, 2), plan, plan_by_unit(visible_PUV, (3, 3)), True)
