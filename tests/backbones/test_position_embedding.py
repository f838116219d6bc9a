"""Position embeddings resized as the published loader does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from triptych.backbones.position_embedding import resize_corner_aligned

REFERENCE = Path(__file__).parents[1] / "reference" / "visualization"


@pytest.fixture(scope="module")
def positions():
    return load_file(REFERENCE / "small_weights_timm.safetensors")["pos_embed"]


@pytest.mark.parametrize("side", [96, 48, 128])
def test_equals_the_published_loader(positions, side):
    with np.load(REFERENCE / "posemb_resize.npz") as arrays:
        golden = torch.from_numpy(arrays[f"pos_embed_{side}"])
    resized = resize_corner_aligned(positions, (8, 8), (side // 8, side // 8))
    torch.testing.assert_close(resized, golden, atol=1e-5, rtol=0)


def test_the_same_grid_and_the_corners_stay(positions):
    torch.testing.assert_close(resize_corner_aligned(positions, (8, 8), (8, 8)), positions)
    wide = resize_corner_aligned(positions[:, 1:], (8, 8), (3, 5))
    assert wide.shape == (1, 15, 48)
    corners = [0, 7, 56, 63]
    torch.testing.assert_close(wide[:, [0, 4, 10, 14]], positions[:, 1:][:, corners])


def test_too_few_embeddings_are_refused(positions):
    with pytest.raises(
        ValueError, match=r"^65 position embeddings do not fill a grid of 9x9 tokens$"
    ):
        resize_corner_aligned(positions, (9, 9), (4, 4))
