"""The token grid and the visible set."""

import pytest
import torch

from triptych.tokens import TokenGrid, VisibleTokens


def test_grid_of_a_map_and_of_a_sequence():
    assert TokenGrid.of((3, 4)) == TokenGrid(3, 4)
    assert TokenGrid.of(7) == TokenGrid(1, 7)
    assert TokenGrid(3, 4).count == 12
    assert str(TokenGrid(3, 4)) == "3x4"


@pytest.mark.parametrize("shared", [True, False])
def test_visible_tokens_go_to_the_grid_and_back_in_row_major_order(shared):
    visible = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]]) > 0
    visible = visible[0] if shared else visible
    x = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2) + 1
    kept = VisibleTokens.of(visible, TokenGrid(2, 3), batch=2, count=3)
    assert kept.index.tolist() == ([[0, 3, 4]] if shared else [[0, 3, 4], [1, 2, 5]])
    grid = kept.on_grid(x)
    mask = visible.expand(2, 6)
    assert torch.equal(grid[mask], x.flatten(0, 1))
    assert (grid[~mask] == 0).all()
    assert torch.equal(kept.from_grid(grid), x)


def test_tensors_of_the_whole_grid_lose_only_the_absent_tokens():
    visible = torch.tensor([True, False, True])
    x = torch.full((2, 3, 1, 1), torch.nan)
    x[:, visible] = 5.0
    kept = VisibleTokens.of(visible, TokenGrid.of(3), batch=2, count=3)
    assert kept.index is None
    assert kept.on_grid(x).flatten(1).tolist() == [[5.0, 0.0, 5.0]] * 2
    assert kept.from_grid(x) is x
