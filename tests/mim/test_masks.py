from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from triptych.mim.masks import (
    count_visible,
    mask_from_noise,
    random_unit_mask,
    restore_order,
    sample_masks,
    sample_noise,
)

FIRST_MASKS = [[0, 2], [0, 6], [0, 7], [0, 15], [1, 4], [1, 8], [1, 10], [1, 13]]


@pytest.mark.parametrize("ratio", ["0.25", "0.4", "0.5", "0.6", "0.75", "0.9"])
def test_published_masks(golden, ratio):
    reference = golden("misc_public")
    noise = reference.tensor(f"mask/{ratio}/noise")
    mask = mask_from_noise(noise, float(ratio))
    assert torch.equal(mask, reference.tensor(f"mask/{ratio}/mask").bool())
    assert torch.equal(restore_order(noise), reference.tensor(f"mask/{ratio}/ids_restore"))


@given(units=st.integers(1, 300), hundredths=st.integers(0, 99))
def test_greenmim_and_simmim_round_alike(units, hundredths):
    exact = Fraction(hundredths, 100)
    kept = floor(units * (1 - exact))
    assert kept == units - ceil(units * exact)
    if kept:
        assert count_visible(units, hundredths / 100) == kept
    else:
        with pytest.raises(ValueError, match="largest legal ratio"):
            count_visible(units, hundredths / 100)


@given(units=st.integers(1, 3000), data=st.data())
def test_a_fraction_of_the_units_hides_just_that_many(units, data):
    hidden = data.draw(st.integers(0, units - 1))
    assert count_visible(units, hidden / units) == units - hidden


@given(units=st.integers(1, 3000))
def test_the_largest_legal_ratio_in_the_message_is_legal(units):
    with pytest.raises(ValueError, match="largest legal ratio is") as error:
        count_visible(units, 0.99999)
    assert count_visible(units, float(str(error.value).split()[-1])) >= 1


@pytest.mark.parametrize(
    ("units", "ratio", "sentence"),
    [
        (16, 1.0, "mask ratio must be at least 0 and below 1, got 1.0"),
        (16, -0.1, "mask ratio must be at least 0 and below 1, got -0.1"),
        (16, float("nan"), "mask ratio must be at least 0 and below 1, got nan"),
        (0, 0.5, "there must be at least 1 mask unit, got 0"),
        (
            4,
            0.8,
            "mask ratio 0.8 leaves none of the 4 mask units visible; the largest legal ratio is "
            "0.75",
        ),
    ],
)
def test_errors(units, ratio, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        count_visible(units, ratio)
    assert str(error.value) == sentence


@given(
    units=st.integers(1, 64),
    ratio=st.floats(0, 0.98),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=8),
)
def test_every_sample_keeps_the_same_number(units, ratio, seed, epoch, indices):
    assume(units * (1 - ratio) >= 1)
    masks = sample_masks(units, ratio, seed=seed, epoch=epoch, indices=indices)
    assert masks.shape == (len(indices), units)
    assert masks.dtype == torch.bool
    assert ((~masks).sum(1) == count_visible(units, ratio)).all()


def test_a_mask_belongs_to_its_sample_not_to_its_batch():
    together = sample_masks(49, 0.75, seed=3, epoch=7, indices=torch.arange(32))
    alone = [sample_masks(49, 0.75, seed=3, epoch=7, indices=[i]) for i in range(32)]
    assert torch.equal(together, torch.cat(alone))


def test_seed_epoch_and_index_each_change_the_mask():
    base = sample_noise(49, seed=0, epoch=0, indices=[0])
    for change in ({"seed": 1}, {"epoch": 1}, {"indices": [1]}, {"seed": 1, "epoch": 1}):
        other = sample_noise(49, **{"seed": 0, "epoch": 0, "indices": [0], **change})
        assert not torch.equal(base, other)


def test_masks_are_the_same_in_every_process_and_version():
    mask = sample_masks(16, 0.75, seed=0, epoch=0, indices=[0, 1])
    assert (~mask).nonzero().tolist() == FIRST_MASKS


def test_noise_is_uniform_and_uncorrelated():
    noise = sample_noise(16, seed=0, epoch=0, indices=torch.arange(20_000))
    assert noise.min() >= 0
    assert noise.max() < 1
    # Standard errors: 0.0020 of a mean, 0.0071 of a correlation; four of them allowed.
    assert (noise.mean(0) - 0.5).abs().max() < 0.009
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(16)
    assert off_diagonal.abs().max() < 0.03
    next_epoch = sample_noise(16, seed=0, epoch=1, indices=torch.arange(20_000))
    pair = torch.stack((noise.flatten(), next_epoch.flatten()))
    assert torch.corrcoef(pair)[0, 1].abs() < 0.0075


def test_one_mask_for_the_batch():
    generator = torch.Generator().manual_seed(0)
    mask = random_unit_mask(49, 0.75, 8, generator=generator, per_sample=False)
    assert (mask == mask[0]).all()
    assert (~mask[0]).sum() == 12


def test_generator_decides_the_masks():
    draws = [
        random_unit_mask(49, 0.6, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not (draws[0] == draws[0][0]).all()
