"""Position weights: the official matrix, the factorisation, and where heads look at the start."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.norms import PositionWeights
from triptych.norms.position_weights import grid_offsets, locality_weights, sequence_offsets
from triptych.tokens import TokenGrid

REFERENCE = Path(__file__).parents[1] / "reference" / "dtn"
WITH_MATRIX = ["dtn_7x7_h2_tiny", "dtn_7x7_h6_magn", "dtn_8x8_h1_zero", "dtn_8x8_h4_sharp"]


@pytest.mark.parametrize("name", WITH_MATRIX)
def test_matrix_is_the_official_one(name):
    with np.load(REFERENCE / f"{name}.npz") as data:
        config = json.loads(str(data["config"]))
        weights = PositionWeights(config["heads"]).double()
        weights.weight.data.copy_(torch.from_numpy(data["param/pos_proj.weight"]))
        matrix = weights.matrix(TokenGrid.of(tuple(config["grid"])), torch.float64)
        np.testing.assert_allclose(matrix.detach().numpy(), data["f64/P"], rtol=0, atol=1e-12)


def test_columns_sum_to_one_and_partition_functions_normalise_the_scores():
    weights = PositionWeights(3, init="released").double()
    grid = TokenGrid(3, 5)
    kernels = weights.kernels(grid, torch.float64)
    scores = weights.axis_scores(grid, torch.float64)
    logs = weights.log_partition(grid, torch.float64)
    for kernel, score, log in zip(kernels, scores, logs, strict=True):
        torch.testing.assert_close(kernel.sum(1), torch.ones_like(log))
        torch.testing.assert_close((score - log[:, None]).exp(), kernel)
    torch.testing.assert_close(weights.matrix(grid).sum(1), torch.ones(3, 15))


def test_a_source_outside_the_grid_takes_the_share_that_the_partition_functions_give():
    """An extra source with score c, as a cls token would be, against the dense softmax."""
    weights = PositionWeights(2).double()
    grid = TokenGrid(3, 4)
    score_y, score_x = weights.axis_scores(grid, torch.float64)
    dense = (score_y[:, :, None, :, None] + score_x[:, None, :, None, :]).reshape(2, 12, 12)
    c = 0.7
    extended = torch.cat((dense, torch.full((2, 1, 12), c, dtype=torch.float64)), 1).softmax(1)
    log_y, log_x = weights.log_partition(grid, torch.float64)
    share = torch.sigmoid(c - (log_y[:, :, None] + log_x[:, None, :]).flatten(1))
    torch.testing.assert_close(share, extended[:, -1])


@pytest.mark.parametrize("heads", [1, 4, 9, 16])
def test_square_head_counts_start_as_the_official_code_does(heads):
    side = round(heads**0.5)
    centre = (side - 1) / 2
    want = torch.empty(heads, 3)
    for h1 in range(side):
        for h2 in range(side):
            want[h1 + side * h2] = torch.tensor([2 * (h2 - centre), 2 * (h1 - centre), -1.0])
    assert torch.equal(locality_weights(heads), want)
    assert torch.equal(PositionWeights(heads).weight, want)


@pytest.mark.parametrize("heads", [2, 3, 5, 6, 7, 8, 12, 24])
def test_other_head_counts_take_the_nearest_offsets_once_each(heads):
    side = int(np.ceil(np.sqrt(heads)))
    centre = (side - 1) / 2
    square = [(i - centre, j - centre) for i in range(side) for j in range(side)]
    offsets = grid_offsets(heads)
    assert len(set(offsets)) == heads
    assert set(offsets) <= set(square)
    nearest = sorted(x * x + y * y for x, y in square)[:heads]
    assert sorted(x * x + y * y for x, y in offsets) == nearest


def test_some_offsets_by_hand():
    assert grid_offsets(2) == [(-0.5, -0.5), (0.5, 0.5)]
    assert set(grid_offsets(5)) == {(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)}
    assert sequence_offsets(4) == [(-1.5, 0.0), (-0.5, 0.0), (0.5, 0.0), (1.5, 0.0)]
    assert PositionWeights(3, sequence=True).weight.tolist() == [
        [-2, 0, -1],
        [0, 0, -1],
        [2, 0, -1],
    ]


def test_locality_makes_each_head_look_at_its_offset():
    """P peaks at the source which lies -Δ from the target, for offsets of whole tokens."""
    grid = TokenGrid(7, 7)
    matrix = PositionWeights(9).matrix(grid)
    centre = 3 * 7 + 3
    for head, (dx, dy) in enumerate(grid_offsets(9)):
        assert int(matrix[head, :, centre].argmax()) == int((3 - dy) * 7 + 3 - dx)


def test_released_init_is_small_and_random():
    torch.manual_seed(0)
    weight = PositionWeights(400, init="released").weight.detach()
    assert 0.018 < float(weight.std()) < 0.022
    assert float(weight.abs().max()) < 0.2
