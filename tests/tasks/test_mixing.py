"""Mixup and cutmix between neighbours."""

from __future__ import annotations

import pytest
import torch

from triptych.tasks.mixing import PairMixing, partners


def batch(count: int = 8, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Image b has the value b everywhere, so that a mixture shows its weights."""
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None]
    return images.expand(-1, 3, size, size).contiguous(), torch.arange(count) % 5


def test_partners() -> None:
    assert partners(5).tolist() == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_mixed_as_the_pixels(alphas: tuple[float, float], seed: int) -> None:
    torch.manual_seed(seed)
    images, labels = batch()
    mixed, target = PairMixing(5, *alphas)(images, labels)
    torch.testing.assert_close(target.sum(1), torch.ones(8))
    own = mixed.mean((1, 2, 3))  # a mean of b and its partner, with the label's weights
    weight = target[torch.arange(8), labels]
    other = partners(8).float()
    torch.testing.assert_close(own, weight * torch.arange(8.0) + (1 - weight) * other)
    assert len(weight.unique()) == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_mixed_as_the_whole(parts: int) -> None:
    images, labels = batch()
    mixing = PairMixing(5, 0.8, 1.0)
    for seed in range(6):
        torch.manual_seed(seed)
        whole, target = mixing(images, labels)
        for part, (some, few) in enumerate(
            zip(images.chunk(parts), labels.chunk(parts), strict=True)
        ):
            torch.manual_seed(seed)
            mixed, mixed_target = mixing(some, few)
            assert torch.equal(mixed, whole.chunk(parts)[part])
            assert torch.equal(mixed_target, target.chunk(parts)[part])


def test_ratios_follow_the_beta_distribution() -> None:
    torch.manual_seed(0)
    images, labels = batch(2, 4)
    mixing = PairMixing(5, 0.8, 0.0)
    ratios = torch.stack([mixing(images, labels)[1][0, 0] for _ in range(2000)])
    assert float(ratios.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratios.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)


def test_nothing_to_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is to be mixed"):
        PairMixing(5, 0.0, 0.0)
