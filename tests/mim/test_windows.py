from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformerBlock, get_relative_position_index

from triptych.mim.windows import Lattice, window_lattice

SIDES = st.tuples(st.integers(1, 17), st.integers(1, 17))


def pairs(lattice, tokens):
    """Which tokens share a window, and their row of the bias table (0 where they do not)."""
    window, position = lattice.window[tokens], lattice.position[tokens]
    same = window[:, None] == window[None, :]
    return same, np.where(same, position[:, None] - position[None, :] + lattice.centre, 0)


@pytest.mark.parametrize(("size", "shift"), [(7, 0), (7, 3), (4, 2)])
def test_published_pairs(golden, size, shift):
    reference = golden("misc_public").arrays
    name = f"pairs/ws{size}_shift{shift}_grid16"
    rows, columns = reference[f"{name}/coords"].T.astype(int)
    lattice = window_lattice((16, 16), (size, size), (shift, shift), Lattice.published)
    same, index = pairs(lattice, rows * 16 + columns)
    assert np.array_equal(same, reference[f"{name}/same_window"])
    assert np.array_equal(index, reference[f"{name}/rel_index"])


@given(repeats=SIDES, window=st.tuples(st.integers(2, 5), st.integers(2, 5)), shifted=st.booleans())
def test_lattices_agree_where_windows_divide_the_grid(repeats, window, shifted):
    grid = window[0] * (1 + repeats[0] % 4), window[1] * (1 + repeats[1] % 4)
    shift = (window[0] // 2, window[1] // 2)
    if not shifted or any(side == w for side, w in zip(grid, window, strict=True)):
        shift = (0, 0)
    tokens = np.arange(grid[0] * grid[1])
    lattices = [
        window_lattice(grid, window, shift, kind) for kind in (Lattice.backbone, Lattice.published)
    ]
    for lattice in lattices:
        assert lattice.pad_window.size == 0
    for ours, theirs in zip(*(pairs(lattice, tokens) for lattice in lattices), strict=True):
        assert np.array_equal(ours, theirs)


@given(grid=SIDES, window=st.integers(1, 7), shifted=st.booleans())
def test_the_backbone_lattice_is_what_timm_attends_to(grid, window, shifted):
    """Follow numbered tokens through timm's own rolling, padding, windows and mask."""
    block = SwinTransformerBlock(
        4, grid, num_heads=1, window_size=window, shift_size=window // 2 if shifted else 0
    )
    size, shift = block.window_size, block.shift_size
    lattice = window_lattice(grid, size, shift, Lattice.backbone)
    seen = {}

    def record(windows, mask=None):
        seen["tokens"], seen["mask"] = windows[..., 0].long(), mask
        return windows

    block.attn.forward = record
    count = grid[0] * grid[1]
    block._attn(torch.arange(1, count + 1.0).view(1, *grid, 1).expand(-1, -1, -1, 4))
    index = get_relative_position_index(*size).numpy()
    padding = 0
    for number, tokens in enumerate(seen["tokens"].numpy()):
        real = tokens > 0
        apart = np.zeros(index.shape, bool)
        if seen["mask"] is not None:
            apart = seen["mask"][number].numpy() != 0
        same, rows = pairs(lattice, tokens[real] - 1)
        assert np.array_equal(same, ~apart[np.ix_(real, real)])
        assert np.array_equal(rows, np.where(same, index[np.ix_(real, real)], 0))
        for query in np.flatnonzero(real):
            mine = lattice.pad_window == lattice.window[tokens[query] - 1]
            bias = lattice.position[tokens[query] - 1] - lattice.pad_position[mine]
            expected = index[query, ~real & ~apart[query]]
            assert np.array_equal(np.sort(bias + lattice.centre), np.sort(expected))
        padding += int((~real).sum())
    assert lattice.pad_window.size == padding


def test_timm_lets_the_last_rows_see_the_first_where_it_pads_after_rolling():
    lattice = window_lattice((16, 16), (7, 7), (3, 3), Lattice.backbone)
    window = lattice.window.reshape(16, 16)
    assert window[0, 5] == window[15, 5]
    published = window_lattice((16, 16), (7, 7), (3, 3), Lattice.published)
    assert published.window.reshape(16, 16)[0, 5] != published.window.reshape(16, 16)[15, 5]
