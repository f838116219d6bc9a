"""Masks typed by hand in the published notebooks, and weights read off the published figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.visualization.object_tokens import coverage, object_tokens
from triptych.visualization.view_spread import view_spread

REFERENCE = Path(__file__).parents[1] / "reference" / "visualization"
GRID = (14, 14)


@pytest.fixture(scope="module")
def typed():
    with np.load(REFERENCE / "handmask.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("demo", ["dog_cat", "multi5"])
@pytest.mark.parametrize("state", ["", "shuffled_g4_seed11/"])
def test_tokens_go_to_what_covers_most_of_them(typed, demo, state):
    mask = typed[f"{demo}/{state}mask" if state else f"{demo}/mask_full"]
    kinds = max(int(key.rsplit("_", 1)[1]) for key in typed if key.startswith(f"{demo}/patch_ids"))
    parts = torch.from_numpy(np.stack([mask == kind for kind in range(kinds + 1)]))
    majority = coverage(parts, GRID).argmax(0).view(GRID)
    assert majority.tolist() == typed[f"{demo}/{state}majority_14"].tolist()
    # An object that covers more than half of a token owns it by our rule too.
    for number, tokens in enumerate(object_tokens(parts[1:], GRID, least=0.5 + 1e-6), start=1):
        assert set(majority.flatten()[tokens].tolist()) <= {number}


@pytest.mark.parametrize("demo", ["dog_cat", "multi5"])
def test_typed_patches_and_background_are_a_partition(typed, demo):
    ids = [typed[key] for key in typed if key.startswith(f"{demo}/patch_ids")]
    assert sorted(np.concatenate(ids).tolist()) == list(range(196))
    masks = torch.zeros(len(ids) - 1, 224, 224, dtype=torch.bool)
    for mask, own in zip(masks, ids[:-1], strict=True):
        for patch in own.tolist():
            row, column = divmod(patch, 14)
            mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = True
    for tokens, own in zip(object_tokens(masks, GRID), ids[:-1], strict=True):
        assert tokens.tolist() == sorted(own.tolist())


# Effective patches and the token's own share at levels 0, 4, 8 and 11, measured from the figure.
FIGURE = {
    "p78": (78, (1.0, 10, 36, 145), (0.99, 0.19, 0.08, 0.011)),
    "p62": (62, (1.0, 9.4, 49, 147), (1.0, 0.17, 0.03, 0.004)),
}


@pytest.fixture(scope="module")
def weights():
    with np.load(REFERENCE / "figure_view_weights.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize("token", sorted(FIGURE))
def test_spread_of_the_published_views_is_measured_alike(weights, token):
    patch, effective, own = FIGURE[token]
    shares_1TN = torch.stack([weights[f"{token}_{level}"] for level in (0, 4, 8, 11)])[None]
    spread = view_spread(shares_1TN, GRID, own=torch.full((4,), patch))
    assert spread.effective_patches[0].tolist() == pytest.approx(effective, rel=0.05)
    assert spread.self_share[0].tolist() == pytest.approx(own, abs=0.006)


def test_the_published_class_token_is_settled(weights):
    rows_LN = torch.stack([weights[f"cls_{level}"] for level in (4, 8, 11)])
    spread = view_spread(rows_LN[None], GRID, own=torch.full((3,), -1))
    assert spread.effective_patches[0].tolist() == pytest.approx([141, 141, 139], abs=1)
    correlation_LL = torch.corrcoef(rows_LN)
    assert correlation_LL[0, 1] > 0.998
    assert correlation_LL[1, 2] > 0.998
