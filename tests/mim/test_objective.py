from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.mim.objective import UnitStatistics, hidden_l1, hidden_mse, patchify, unpatchify


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


@pytest.mark.parametrize(("loss", "power"), [(hidden_mse, 2), (hidden_l1, 1)])
def test_losses_average_over_hidden_pixels_alone(loss, power):
    prediction, target = randn(3, 6, 8), randn(3, 6, 8, seed=1)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [0] * 6]).bool()
    expected = (prediction - target)[mask].abs().pow(power).mean()
    torch.testing.assert_close(loss(prediction, target, mask), expected, atol=1e-14, rtol=0)
    prediction[~mask] += 100
    torch.testing.assert_close(loss(prediction, target, mask), expected, atol=1e-14, rtol=0)


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
        hidden_mse(randn(1, 6, 8), randn(1, 6, 8), torch.zeros(1, 6, dtype=torch.bool))
    assert str(error.value) == (
        "mask hides none of the 6 mask units, so there is nothing to reconstruct; hide at least one"
    )
