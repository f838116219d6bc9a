"""Reconstructions in the units of the image."""

import pytest
import torch

from triptych.visualization.display import unnormalise
from triptych.visualization.reconstruction import (
    hidden_pixels,
    reconstruct,
    reconstruction_rows,
    undo_patch_normalisation,
)


def test_hidden_units_cover_their_pixels():
    mask = torch.tensor([[[True, False, False], [False, True, True]]])
    hidden = hidden_pixels(mask, (4, 9))
    assert hidden.shape == (1, 1, 4, 9)
    for row in range(4):
        for col in range(9):
            assert bool(hidden[0, 0, row, col]) == bool(mask[0, row // 2, col // 3])


def test_patch_normalisation_is_undone():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 8, 12, generator=generator)
    normalised = torch.empty_like(target)
    for row in range(0, 8, 4):
        for col in range(0, 12, 4):
            patch = target[:, :, row : row + 4, col : col + 4]
            mean = patch.mean((1, 2, 3), keepdim=True)
            std = (patch.var((1, 2, 3), keepdim=True) + 1e-6).sqrt()
            normalised[:, :, row : row + 4, col : col + 4] = (patch - mean) / std
    restored = undo_patch_normalisation(normalised, target, 4)
    torch.testing.assert_close(restored, target, atol=1e-6, rtol=0)


def test_prediction_is_pasted_only_where_hidden():
    images = torch.rand(2, 1, 4, 4)
    predicted = images + 0.25
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    mask[1] = True
    result = reconstruct(images, mask, predicted)
    assert torch.equal(result.pasted[0, :, 2:], images[0, :, 2:])
    assert torch.equal(result.pasted[0, :, :2, 2:], predicted[0, :, :2, 2:])
    assert torch.equal(result.masked[0, :, :2, 2:], torch.full((1, 2, 2), 0.5))
    assert result.error[0, 0, 2:].abs().max() == 0
    rows = reconstruction_rows(result)
    assert [row["hidden_fraction"] for row in rows] == [0.25, 1.0]
    for row in rows:
        assert row["mean_absolute_error"] == pytest.approx(0.25, abs=1e-6)
        assert row["mean_squared_error"] == pytest.approx(0.0625, abs=1e-6)


def test_perfect_prediction_has_no_error():
    images = torch.rand(1, 3, 8, 8)
    result = reconstruct(images, torch.ones(1, 2, 2, dtype=torch.bool), images.clone())
    assert reconstruction_rows(result)[0]["mean_squared_error"] == 0


@pytest.mark.parametrize(
    ("mask", "predicted", "sentence"),
    [
        (
            torch.ones(1, 2, 2),
            torch.ones(1, 3, 8, 8),
            r"the mask is torch.float32 of shape \(1, 2, 2\); "
            r"give torch.bool \(images, rows, columns\) of mask units, True where hidden",
        ),
        (
            torch.ones(1, 3, 2, dtype=torch.bool),
            torch.ones(1, 3, 8, 8),
            "a mask of 3x2 units does not divide an image of 8x8 pixels; "
            "give units of whole pixels",
        ),
        (
            torch.ones(2, 2, 2, dtype=torch.bool),
            torch.ones(1, 3, 8, 8),
            "2 masks for 1 images; give one mask for each image",
        ),
        (
            torch.ones(1, 2, 2, dtype=torch.bool),
            torch.ones(1, 4, 48),
            r"the prediction has shape \(1, 4, 48\) and the images \(1, 3, 8, 8\); "
            r"give both as \(images, channels, height, width\)",
        ),
    ],
)
def test_bad_input_gets_one_sentence(mask, predicted, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        reconstruct(torch.ones(1, 3, 8, 8), mask, predicted)


def test_patches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"^patches of 3 pixels do not divide an image of 8x8; "):
        undo_patch_normalisation(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), 3)


def test_unnormalise_undoes_the_input_normalisation():
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    shape = (1, 3, 1, 1)
    images = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(unnormalise(images, mean, std), pixels)
    with pytest.raises(
        ValueError,
        match=r"^1 means and 3 standard deviations for 3 channels; give one of each for every "
        "channel$",
    ):
        unnormalise(images, [0.5], std)
    with pytest.raises(ValueError, match=r"^images have shape \(2, 4, 4, 4\); "):
        unnormalise(torch.rand(2, 4, 4, 4), mean, std)
