from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.mim.objective import (
    UnitStatistics,
    hidden_mse,
    hidden_units,
    mean_absolute_error,
    mean_squared_error,
    patchify,
    select_patches,
    unpatchify,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("unit", [16, 32])
def test_published_patches_and_targets(golden, unit):
    reference = golden("misc_public")
    name = f"patchify/p{unit}"
    patches = patchify(reference.tensor(f"{name}/imgs"), unit)
    assert torch.equal(patches, reference.tensor(f"{name}/patches"))
    normalized = UnitStatistics.of(patches).normalize(patches)
    torch.testing.assert_close(
        normalized, reference.tensor(f"{name}/normalized"), atol=1e-6, rtol=1e-5
    )


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    unit=st.integers(1, 5),
    channels=st.integers(1, 4),
)
def test_patches_hold_their_pixels(rows, columns, unit, channels):
    images = randn(2, channels, rows * unit, columns * unit)
    patches = patchify(images, unit)
    for row in range(rows):
        for column in range(columns):
            block = images[:, :, row * unit : (row + 1) * unit, column * unit : (column + 1) * unit]
            assert torch.equal(
                patches[:, row * columns + column], block.permute(0, 2, 3, 1).flatten(1)
            )
    assert torch.equal(unpatchify(patches, unit, (rows, columns)), images)


def test_normalized_units_have_mean_0_and_deviation_1():
    patches = 3 + 5 * randn(2, 6, 48)
    statistics = UnitStatistics.of(patches)
    targets = statistics.normalize(patches)
    assert targets.mean(2).abs().max() < 1e-12
    assert (targets.std(2) - 1).abs().max() < 1e-6
    torch.testing.assert_close(statistics.denormalize(targets), patches, atol=1e-12, rtol=0)


def test_a_constant_unit_stays_finite():
    statistics = UnitStatistics.of(torch.full((1, 1, 16), 0.5))
    assert statistics.normalize(torch.full((1, 1, 16), 0.5)).abs().max() == 0


MASK = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [0] * 6]).bool()


def test_hidden_units_are_counted_through_the_batch():
    assert hidden_units(MASK).tolist() == [0, 3, 4, 11]


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_of_hidden_units_alone(channels):
    images = randn(3, channels, 8, 12)
    expected = patchify(images, 4)[MASK]
    assert torch.equal(select_patches(images, 4, hidden_units(MASK)), expected)


def test_the_mean_over_hidden_units_is_the_masked_mean():
    prediction, target = randn(3, 6, 8), randn(3, 6, 8, seed=1)
    error, weight = prediction - target, MASK.double()
    square = (error.square().mean(2) * weight).sum() / weight.sum()
    absolute = (error.abs() * weight[..., None]).sum() / weight.sum() / 8
    hidden = prediction[MASK], target[MASK]
    torch.testing.assert_close(mean_squared_error(*hidden), square, atol=1e-14, rtol=0)
    torch.testing.assert_close(mean_absolute_error(*hidden), absolute, atol=1e-14, rtol=0)
    torch.testing.assert_close(hidden_mse(prediction, target, MASK), square, atol=1e-14, rtol=0)


def test_errors():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        patchify(randn(1, 3, 32, 30), 8)
    assert str(error.value) == (
        "images are 32x30, but both sides must be multiples of the mask unit of 8 pixels"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        unpatchify(randn(1, 6, 48), 4, (2, 2))
    assert str(error.value) == (
        "patches have shape (1, 6, 48), but 2x2 units of 4x4 pixels need (B, 4, a multiple of 16)"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        hidden_units(torch.zeros(1, 6, dtype=torch.bool))
    assert str(error.value) == (
        "mask hides none of the 6 mask units, so there is nothing to reconstruct; hide at least one"
    )
