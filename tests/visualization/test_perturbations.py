"""Occlusion and shuffling against the released code, and their invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.visualization.conftest import REFERENCE

from triptych.visualization.object_tokens import foreground_tokens
from triptych.visualization.perturbations import (
    Occlusion,
    cells_by_mass,
    choose_cells,
    generator_of,
    invert,
    occlude,
    random_permutation,
    shuffle_cells,
)

GRID = (14, 14)


@pytest.fixture(scope="module")
def official():
    return np.load(REFERENCE / "occlusion_shuffle.npz")


@pytest.mark.parametrize(("name", "size"), [("sq224", (224, 224)), ("big411x600", (411, 600))])
@pytest.mark.parametrize("kind", ["salient", "nonsalient", "random_0.2", "random_0.5", "random_37"])
def test_occlusion_equals_the_released_code(official, name, size, kind):
    if kind.startswith("random"):
        ratio = float(kind.split("_")[1])
        cells = np.arange(196)
        np.random.RandomState(11).shuffle(cells)
        cells = cells[: int(196 * ratio) if ratio < 1 else int(ratio)]
        drawn = choose_cells(
            Occlusion.random,
            ratio if ratio < 1 else ratio / 196,
            torch.zeros(196, dtype=torch.bool),
            np.random.RandomState(11),
        )
        assert drawn.tolist() == cells.tolist()
        wanted = official[f"{name}/{kind}_seed11_zeroed"]
    else:
        drawn = torch.from_numpy(official[f"{kind}_ids"])
        wanted = official[f"{name}/{kind}_zeroed"]
    found = occlude(torch.ones(size), drawn, GRID) == 0
    packed = np.packbits(found.numpy(), axis=-1)
    np.testing.assert_array_equal(packed, wanted)


@pytest.mark.parametrize("kind", list(Occlusion))
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75, 1.0])
def test_occlusion_by_masks_equals_the_released_code(official, kind, ratio):
    key = f"mask/is_{kind}_{ratio}_seed11"
    mask = torch.from_numpy(official["mask/instance_mask"])
    foreground = foreground_tokens(((mask > 0) & (mask <= 200))[None], GRID)
    assert foreground.nonzero()[:, 0].tolist() == official["mask/object_patch_ids"].tolist()
    cells = choose_cells(kind, ratio, foreground, np.random.RandomState(11))
    assert sorted(cells.tolist()) == official[f"{key}/patch_ids"].tolist()
    after = occlude(mask, cells, GRID)
    np.testing.assert_array_equal(after.numpy(), official[f"{key}/mask_after"])


@pytest.mark.parametrize("side", [2, 3, 4, 8, 14])
def test_shuffling_equals_the_released_code(official, side):
    key = f"shuffle/g{side}_seed11"
    permutation = torch.from_numpy(official[f"{key}/perm"])
    mask = torch.from_numpy(official["mask/instance_mask"])
    shuffled = shuffle_cells(mask, permutation, (side, side))
    np.testing.assert_array_equal(shuffled.numpy(), official[f"{key}/mask"])


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_shuffling_then_unshuffling_is_the_identity(rows, columns, height, width, seed):
    image = torch.randn(2, 3, rows * height, columns * width)
    permutation = random_permutation((rows, columns), generator_of(seed, 3))
    shuffled = shuffle_cells(image, permutation, (rows, columns))
    assert torch.equal(shuffle_cells(shuffled, invert(permutation), (rows, columns)), image)


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.sampled_from(list(Occlusion)))
def test_occlusion_touches_the_chosen_cells_and_no_other(rows, columns, ratio, kind):
    foreground = torch.rand(rows * columns) > 0.5
    cells = choose_cells(kind, ratio, foreground, generator_of(1, 2))
    eligible = {"random": len(foreground), "salient": int(foreground.sum())}.get(
        kind, int((~foreground).sum())
    )
    assert len(set(cells.tolist())) == len(cells) == int(eligible * ratio)
    image = torch.rand(3, rows * 4 + rows - 1, columns * 3 + columns - 1) + 1
    after = occlude(image, cells, (rows, columns), fill=-1)
    changed = (after != image).any(0)
    assert int(changed.sum()) == len(cells) * 12
    assert not changed[rows * 4 :].any()
    assert not changed[:, columns * 3 :].any()


def test_the_same_seed_and_image_draw_the_same():
    draw = [generator_of(4, image).permutation(9).tolist() for image in (7, 7, 8)]
    assert draw[0] == draw[1] != draw[2]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_mass_takes_the_fewest_cells_that_reach_it(values, mass):
    attention = torch.tensor(values, dtype=torch.float64)
    chosen = cells_by_mass(attention, mass)
    share = attention / attention.sum()
    assert share[chosen].sum() >= mass - 1e-9
    assert share[chosen].sum() - share[chosen].min() <= mass + 1e-9
    assert not (~chosen).any() or share[~chosen].max() <= share[chosen].min() + 1e-12


def test_bad_input_is_told():
    image = torch.zeros(8, 8)
    with pytest.raises(ValueError, match=r"cells 0 to 4 were given, but a 2x2 grid has cells 0"):
        occlude(image, torch.tensor([0, 4]), (2, 2))
    with pytest.raises(ValueError, match="9x2 grid is finer than an image of 8x8"):
        occlude(image, torch.tensor([0]), (9, 2))
    with pytest.raises(ValueError, match="a permutation of the 4 cells"):
        shuffle_cells(image, torch.tensor([0, 1, 2, 2]), (2, 2))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        choose_cells(Occlusion.random, 1.5, torch.zeros(4, dtype=torch.bool), generator_of(0, 0))
    with pytest.raises(ValueError, match="non-negative, and positive somewhere"):
        cells_by_mass(torch.zeros(4), 0.5)
