"""Windows of attention and their place on the grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.visualization.attention_map import AttentionMap, fuse_heads, window_token_index


def naive_windows(grid, window, shift):
    """Token ids slot by slot, from the definition."""
    (rows, cols), (tall, wide) = grid, window
    windows = []
    for top in range(0, rows, tall):
        for left in range(0, cols, wide):
            ids = []
            for row in range(top, top + tall):
                for col in range(left, left + wide):
                    inside = row < rows and col < cols
                    source = ((row + shift[0]) % rows) * cols + (col + shift[1]) % cols
                    ids.append(source if inside else -1)
            windows.append(ids)
    return windows


sides = st.integers(1, 9)
windows = st.integers(1, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(sides, sides), st.tuples(windows, windows), st.data())
def test_window_index_equals_the_definition(grid, window, data):
    shift = tuple(data.draw(st.integers(0, side - 1)) for side in window)
    index = window_token_index(grid, window, shift)
    assert index.tolist() == naive_windows(grid, window, shift)
    ids = index[index >= 0]
    assert sorted(ids.tolist()) == list(range(grid[0] * grid[1]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(sides, sides), st.integers(1, 4), st.integers(0, 2**20))
def test_dense_equals_slot_by_slot_scatter(grid, side, seed):
    index = window_token_index(grid, (side, side), (side // 2, side // 2))
    count, slots = index.shape
    tokens = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, count, 3, slots, slots, generator=generator).softmax(-1)
    reachable = torch.ones(count, slots, slots, dtype=torch.bool)
    dense = AttentionMap(values, index, reachable, tokens).dense()
    naive = torch.zeros(2, 3, tokens, tokens)
    for window in range(count):
        for query, at in enumerate(index[window].tolist()):
            for key, to in enumerate(index[window].tolist()):
                if at >= 0 and to >= 0:
                    naive[:, :, at, to] = values[:, window, :, query, key]
    naive = naive / naive.sum(-1, keepdim=True)
    torch.testing.assert_close(dense, naive, atol=1e-6, rtol=1e-5)


def test_fused_map_has_one_head():
    values = torch.rand(2, 3, 4, 5, 5)
    index = torch.arange(15).view(3, 5)
    attention = AttentionMap(values, index, torch.ones(3, 5, 5, dtype=torch.bool), 15)
    assert attention.heads == 4
    assert attention.fused("max").heads == 1
    assert torch.equal(attention.fused("max").probabilities[:, :, 0], values.amax(2))


def test_unknown_fusion_is_refused():
    with pytest.raises(
        ValueError, match=r"^head fusion 'median' is not known; choose one of mean, max, min$"
    ):
        fuse_heads(torch.rand(1, 2, 3, 3), "median", 1)
