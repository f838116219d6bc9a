"""Filter scores and the spread of views against references and other ways to the same number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from triptych.visualization.filter_scores import FilterScores, filter_energy, filter_scores
from triptych.visualization.filters import PatchFilters, patch_filters
from triptych.visualization.rollout import rollout_to_input
from triptych.visualization.view_spread import view_spread
from triptych.visualization.views import local_views


def test_effective_patches_equal_the_reference(vit_capture, view_reference):
    for level, rollout in enumerate(rollout_to_input(vit_capture)):
        spread = view_spread(rollout[:, :, 1:], (8, 8))
        golden = view_reference["effective_patches"][:, level]
        torch.testing.assert_close(spread.effective_patches, golden, atol=1e-3, rtol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**20))
def test_spread_by_naive_loops(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    patches = rows * cols
    shares = torch.rand(1, patches + 1, patches, generator=generator, dtype=torch.double) + 1e-3
    objects = torch.rand(1, patches, generator=generator) < 0.5
    spread = view_spread(shares, (rows, cols), objects=objects)
    for token in range(patches + 1):
        p = (shares[0, token] / shares[0, token].sum()).tolist()
        assert spread.effective_patches[0, token] == pytest.approx(1 / sum(x * x for x in p))
        assert spread.entropy[0, token] == pytest.approx(-sum(x * math.log(x) for x in p))
        if token == 0:
            assert math.isnan(spread.self_share[0, 0])
            assert math.isnan(spread.mean_distance[0, 0])
            continue
        own = token - 1
        assert spread.self_share[0, token] == pytest.approx(p[own])
        far = sum(
            x * math.hypot(i // cols - own // cols, i % cols - own % cols) for i, x in enumerate(p)
        )
        assert spread.mean_distance[0, token] == pytest.approx(far, rel=1e-5, abs=1e-6)
        on = [x for x, inside in zip(p, objects[0].tolist(), strict=True) if inside]
        off = [x for x, inside in zip(p, objects[0].tolist(), strict=True) if not inside]
        if on and off:
            ratio = (sum(on) / len(on)) / (sum(off) / len(off))
            assert spread.object_ratio[0, token] == pytest.approx(ratio)
    assert (spread.effective_patches <= patches + 1e-9).all()
    assert (spread.entropy <= math.log(patches) + 1e-9).all()


def test_even_and_single_shares_are_the_ends():
    shares = torch.stack((torch.full((4,), 0.25), torch.tensor([0.0, 1, 0, 0])))[None]
    spread = view_spread(shares, (2, 2), own=torch.tensor([0, 1]))
    torch.testing.assert_close(spread.effective_patches, torch.tensor([[4.0, 1.0]]))
    torch.testing.assert_close(spread.entropy, torch.tensor([[math.log(4), 0.0]]))
    torch.testing.assert_close(spread.self_share, torch.tensor([[0.25, 1.0]]))


def test_energy_is_the_norm_of_the_positive_view(make_family, family_images):
    for name in ("vit", "pvt_v2"):
        filters = patch_filters(make_family(name))
        views = local_views(family_images, filters, range(filters.count))
        naive = views.clamp_min(0).square().sum((3, 4, 5)).sqrt()
        torch.testing.assert_close(
            filter_energy(family_images, filters), naive, atol=1e-5, rtol=1e-4
        )


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(0, 2**20), st.booleans())
def test_auroc_is_scikit_learns(patches, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    energy = torch.rand(2, 2, patches, generator=generator)
    energy = energy.mul(3).round() if ties else energy
    objects = torch.rand(2, patches, generator=generator) < 0.5
    objects[:, 0], objects[:, -1] = True, False
    scores = filter_scores(energy, objects)
    for image in range(2):
        for index in range(2):
            truth, value = objects[image].numpy(), energy[image, index].numpy()
            assert scores.auroc[image, index] == pytest.approx(roc_auc_score(truth, value))
            share = value[truth].sum() / max(value.sum(), 1e-30)
            assert scores.object_share[image, index] == pytest.approx(share, rel=1e-5)


def test_a_filter_is_good_for_what_it_matches():
    """One filter wants bright patches and the other dark ones; the object is bright, then dark."""
    filters = PatchFilters(torch.stack((torch.ones(1, 2, 2), -torch.ones(1, 2, 2))), (2, 2))
    images = torch.full((2, 1, 4, 4), -1.0)
    images[0, :, :2] = 1.0
    images[1, :, 2:] = 1.0
    objects = torch.tensor([[True, True, False, False]] * 2)
    scores = filter_scores(filter_energy(images, filters), objects)
    assert scores.auroc.tolist() == [[1, 0], [0, 1]]
    assert scores.object_share.tolist() == [[1, 0], [0, 1]]
    assert scores.good().tolist() == [[True, False], [False, True]]
    assert scores.by_group(torch.tensor([0, 1])).tolist() == [[1, 0], [0, 1]]
    assert scores.by_group(torch.tensor([0, 0])).tolist() == [[0.5, 0.5]]


def test_good_needs_both_the_level_and_the_rank():
    auroc = torch.linspace(0, 1, 40)[None]
    assert FilterScores(auroc, auroc).good().sum() == 2
    assert FilterScores(auroc / 2, auroc).good().sum() == 0


def test_bad_requests_get_one_sentence():
    with pytest.raises(ValueError, match=r"^shares of 5 patches do not fit a grid of 2x2$"):
        view_spread(torch.ones(1, 5, 5), (2, 2))
    with pytest.raises(ValueError, match=r"^a token has no share of any patch; leave it out$"):
        view_spread(torch.zeros(1, 4, 4), (2, 2))
    with pytest.raises(ValueError, match=r"^every image needs object patches and others to score"):
        filter_scores(torch.ones(1, 2, 4), torch.ones(1, 4, dtype=torch.bool))
