"""Occlusion and shuffling of whole test sets: what is disturbed, and how it is counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from triptych.data.corruptions.dataset import normalised
from triptych.tasks.perturbation import (
    disturbed,
    perturbation_metrics,
    perturbation_rows,
    shuffle_grids,
)
from triptych.visualization.perturbations import Occlusion

MEAN, STD = (0.5,), (0.25,)
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Says class 1 where more than a share of the image is lit."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.tensor(least))

    def forward(self, images: Tensor) -> Tensor:
        lit = (images * STD[0] + MEAN[0]).mean((1, 2, 3))
        return torch.stack([self.least - lit, lit - self.least], 1)


def squares(count: int = 6) -> Tensor:
    """White squares of 16 x 16 in the middle of 32 x 32 black pixels."""
    pixels = torch.zeros(count, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, 8:24, 8:24] = 255
    return pixels


def batches(pixels: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor, Tensor]]:
    images = normalised(pixels, MEAN, STD)
    places = torch.arange(len(images)).split(size)
    return [(images[some], torch.ones(len(some)).long(), some) for some in places]


def rows_of(pixels: Tensor, least: float, size: int = 4) -> list[dict[str, object]]:
    return perturbation_rows(
        Brightness(least), batches(pixels, size), mean=MEAN, std=STD, device=CPU
    )


def test_counts_by_hand() -> None:
    """A quarter is lit; dropping object cells leaves (1 - share) of it, background cells all."""
    rows = {(row["kind"], row["amount"]): row for row in rows_of(squares(), 0.1249)}
    assert rows["none", 0.0]["accuracy"] == 1
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert rows["salient", share]["accuracy"] == 1
    for share in (0.6, 0.7, 0.8, 0.9):
        assert rows["salient", share]["accuracy"] == 0
    assert all(rows["non_salient", share / 10]["accuracy"] == 1 for share in range(1, 10))
    assert all(row["accuracy"] == 1 for key, row in rows.items() if key[0] == "shuffle")
    assert {row["images"] for row in rows.values()} == {6}
    assert rows["random", 0.5]["grid"] == "8x8"
    metrics = perturbation_metrics(list(rows.values()))
    assert metrics["perturbation/occlusion_salient"] == pytest.approx(5 / 9)
    assert metrics["perturbation/occlusion_salient/50"] == 1
    assert metrics["perturbation/occlusion_salient/80"] == 0
    assert metrics["perturbation/occlusion_non_salient"] == 1
    assert metrics["perturbation/shuffle"] == 1


def test_batches_change_nothing() -> None:
    assert rows_of(squares(7), 0.12, size=4) == rows_of(squares(7), 0.12, size=2)


def test_cells_are_dropped_in_their_number_and_elsewhere_nothing_changes() -> None:
    pixels = torch.full((2, 1, 32, 32), 200, dtype=torch.uint8)
    for (kind, amount), _grid, changed in disturbed(pixels, [3, 9], 0):
        if kind == Occlusion.random:
            dropped = (changed == 0).flatten(1).sum(1)
            assert dropped.tolist() == [16 * int(64 * amount)] * 2
            assert ((changed == 0) | (changed == 200)).all()


def test_shuffling_keeps_all_pixels() -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).to(torch.uint8)
    for (kind, _), _grid, changed in disturbed(pixels, [0, 1], 0):
        if kind == "shuffle":
            assert torch.equal(changed.flatten(2).sort(2)[0], pixels.flatten(2).sort(2)[0])
            assert not torch.equal(changed, pixels)


def test_published_grids() -> None:
    assert shuffle_grids((224, 224)) == [(2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (14, 14), (16, 16)]
    assert shuffle_grids((28, 28)) == [(2, 2), (2, 4), (4, 4), (14, 14)]


def test_images_that_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match=r"^images of 30x30 pixels cannot be cut into cells"):
        rows_of(torch.zeros(2, 1, 30, 30, dtype=torch.uint8), 0.1)
