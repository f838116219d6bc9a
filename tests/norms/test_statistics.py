"""Neighbourhood statistics: every way of computing them, and their rounding."""

import pytest
import torch

from triptych.norms.position_weights import axis_scores, token_scores
from triptych.norms.statistics import neighbourhood_moments, visible_kernels
from triptych.tokens import TokenGrid, VisibleTokens

GRID = TokenGrid(4, 5)


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight_H3 = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    visible_MT = torch.rand(2, GRID.count, generator=generator) < 0.5
    visible_MT[0, 5:10] = False  # a row without any visible token
    return weight_H3, visible_MT


def dense_kernel(weight_H3, visible_MT):
    everything = torch.arange(GRID.count)[None]
    scores_MHST = token_scores(weight_H3, everything, GRID)
    return scores_MHST.masked_fill(~visible_MT[:, None, :, None], -torch.inf).softmax(2)


def test_row_and_column_kernels_multiply_to_the_softmax_over_visible_tokens():
    weight_H3, visible_MT = problem()
    scores_y = axis_scores(weight_H3[:, 1], weight_H3[:, 2], GRID.height)
    scores_x = axis_scores(weight_H3[:, 0], weight_H3[:, 2], GRID.width)
    within_MHYXX, over_MHXYY = visible_kernels(scores_y, scores_x, visible_MT)
    # source row s and column i, target row t and column j
    product = torch.einsum("mhsij,mhjst->mhsitj", within_MHYXX, over_MHXYY)
    got = product.reshape(2, 3, GRID.count, GRID.count)
    torch.testing.assert_close(got, dense_kernel(weight_H3, visible_MT), rtol=1e-12, atol=1e-12)


def test_token_scores_are_the_sum_of_both_axes():
    weight_H3, _ = problem()
    scores_y = axis_scores(weight_H3[:, 1], weight_H3[:, 2], GRID.height)
    scores_x = axis_scores(weight_H3[:, 0], weight_H3[:, 2], GRID.width)
    index = torch.tensor([[0, 7, 13], [4, 5, 19]])
    row, column = index // GRID.width, index % GRID.width
    got = token_scores(weight_H3, index, GRID)
    for sample in range(2):
        for source in range(3):
            for target in range(3):
                want = (
                    scores_y[:, row[sample, source], row[sample, target]]
                    + scores_x[:, column[sample, source], column[sample, target]]
                )
                torch.testing.assert_close(got[sample, :, source, target], want)


@pytest.mark.parametrize("count", [3, 12, 20])
def test_few_and_many_visible_tokens_give_the_same(count):
    """3 tokens go by pairs, 12 and 20 axis by axis."""
    weight_H3, _ = problem()
    generator = torch.Generator().manual_seed(count)
    order = torch.rand(2, GRID.count, generator=generator).argsort(1)
    visible_MT = torch.zeros(2, GRID.count, dtype=torch.bool).scatter(1, order[:, :count], True)
    x_BTHD = torch.randn(2, GRID.count, 3, 2, generator=generator, dtype=torch.float64)
    kernel = dense_kernel(weight_H3, visible_MT)
    want_mean = torch.einsum("bhst,bshd->bthd", kernel, x_BTHD)
    want_square = torch.einsum("bhst,bshd->bthd", kernel, x_BTHD.square())
    visible = VisibleTokens.of(visible_MT, GRID, 2, count)
    mean, variance = neighbourhood_moments(
        x_BTHD[visible_MT].view(2, count, 3, 2), weight_H3, GRID, visible
    )
    held = visible_MT
    torch.testing.assert_close(mean.flatten(0, 1), want_mean[held])
    want = (want_square - want_mean.square())[held]
    torch.testing.assert_close(variance.flatten(0, 1), want, rtol=1e-9, atol=1e-12)


def test_variance_is_never_negative():
    """Large constant halves: all neighbours are equal, and only rounding is left."""
    grid = TokenGrid(8, 32)
    x_BTHD = torch.linspace(1e3, 9e3, 64).view(1, 1, 1, 64).repeat(1, grid.count, 1, 1)
    x_BTHD.view(1, 8, 32, 1, 64)[:, :, 16:] *= -1
    weight_H3 = torch.tensor([[0.3, -0.2, -0.4]])
    _, variance = neighbourhood_moments(x_BTHD, weight_H3, grid)
    assert (variance >= 0).all()
    assert (variance == 0).any()
