"""Good and bad filters as numbers: how well the level-0 view of a filter shows the objects.

The energy of a patch is ‖relu(f_j ⊗ x_k)‖₂. A filter is good for an image when the energy is
higher on object patches than elsewhere; the paper shows such filters but gives no formula.

Shapes: B images, F filters, N patches, G groups of images, E pixels of a patch times channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from triptych.visualization.filters import PatchFilters
from triptych.visualization.views import patches_of

GOOD_AUROC = 0.75
GOOD_SHARE = 0.05


@dataclass(frozen=True)
class FilterScores:
    """Attributes:
    auroc: (B, F), how often an object patch has more energy than another patch (ties half).
    object_share: (B, F), share of the energy that falls on object patches.
    """

    auroc: Tensor
    object_share: Tensor

    def good(self) -> Tensor:
        """Bool (B, F): AUROC of at least 0.75 and among the best 5 % of the filters."""
        count = max(1, round(GOOD_SHARE * self.auroc.shape[1]))
        threshold_B1 = self.auroc.topk(count, dim=1).values[:, -1:]
        return (self.auroc >= GOOD_AUROC) & (self.auroc >= threshold_B1)

    def by_group(self, groups: Tensor) -> Tensor:
        """Mean AUROC of each filter over the images of each group, (G, F).

        Args:
            groups: (B,), group numbers from 0 on.
        """
        count = int(groups.max()) + 1
        member_GB = (torch.arange(count)[:, None] == groups[None]).to(self.auroc)
        return member_GB @ self.auroc / member_GB.sum(1, keepdim=True)


def filter_energy(images: Tensor, filters: PatchFilters) -> Tensor:
    """‖relu(f_j ⊗ x_k)‖₂ of every filter and patch, (B, F, N), without making a view.

    A product is positive where both signs agree, so its square sums over two products of squares.
    """
    pixels_BNE, weight_FE = patches_of(images, filters).flatten(2), filters.weight.flatten(1)
    both_BNF = pixels_BNE.clamp_min(0).square() @ weight_FE.clamp_min(0).square().T
    both_BNF = both_BNF + pixels_BNE.clamp_max(0).square() @ weight_FE.clamp_max(0).square().T
    return both_BNF.sqrt().transpose(1, 2)


def filter_scores(energy: Tensor, objects: Tensor) -> FilterScores:
    """Scores of the filters from their ``energy`` (B, F, N).

    Args:
        objects: bool (B, N), True on patches of an object.

    Raises:
        ValueError: shapes that do not fit, or an image without object or without background.
    """
    if objects.shape != (energy.shape[0], energy.shape[2]):
        raise ValueError(
            f"objects has shape {tuple(objects.shape)}; give "
            f"({energy.shape[0]}, {energy.shape[2]}), bool"
        )
    inside_B, patches = objects.sum(1), energy.shape[2]
    if not bool(((inside_B > 0) & (inside_B < patches)).all()):
        raise ValueError("every image needs object patches and others to score filters")
    rank_BFN = torch.from_numpy(rankdata(energy.cpu().numpy(), axis=-1)).to(energy)
    inside_B1N = objects[:, None].to(energy)
    count_B1 = inside_B[:, None].to(energy)
    above_BF = (rank_BFN * inside_B1N).sum(-1) - count_B1 * (count_B1 + 1) / 2
    share_BF = (energy * inside_B1N).sum(-1) / energy.sum(-1).clamp_min(1e-30)
    return FilterScores(above_BF / (count_B1 * (patches - count_B1)), share_BF)
