"""The linear probe: multinomial logistic regression on frozen features.

Published protocols differ. MAE (He et al., CVPR 2022, appendix A.1) and DINO train the layer by
SGD for 90 or 100 epochs on random crops, a pass of the backbone over all images in each epoch.
Kornblith et al. (CVPR 2019, section 3.1) and MSN (Assran et al., ECCV 2022, for few labels) fit
a regularised logistic regression on features of images without augmentation. This is the latter:
features are computed once and serve every label fraction; the problem is convex, so there is no
learning rate, length or seed that one cell could be luckier with than another; and SGD recipes
tuned for 1.28 million images say nothing about forty. Features are standardised first by mean and
standard deviation over the training images, as by the norm without weights in MAE's probe.

Shapes: N images, C channels of a feature, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST_STEPS = 500


def fit_linear_probe(
    features_NC: Tensor, labels_N: Tensor, *, num_classes: int, regularization: float = 1.0
) -> nn.Linear:
    """The layer with the least sum of cross-entropies + ½ · ``regularization`` · ‖W‖².

    W (K, C) is that for standardised features; the bias is free. The layer returned takes the
    features as they are. A channel that is the same for all images has no part in it.

    Raises:
        ValueError: features that are not finite.
    """
    if not bool(features_NC.isfinite().all()):
        raise ValueError("features hold a value that is not finite, so no probe can be fitted")
    x_NC = features_NC.double()
    mean_C, std_C = x_NC.mean(0), x_NC.std(0, correction=0)
    used_C = std_C > 1e-6 * (1 + mean_C.abs())
    scale_C = torch.where(used_C, 1 / std_C.clamp_min(1e-300), 0)
    weight_KC, bias_K = _minimum((x_NC - mean_C) * scale_C, labels_N, num_classes, regularization)
    layer = nn.Linear(x_NC.shape[1], num_classes, device=x_NC.device)
    folded_KC = weight_KC * scale_C
    with torch.no_grad():
        layer.weight.copy_(folded_KC)
        layer.bias.copy_(bias_K - folded_KC @ mean_C)
    return layer.requires_grad_(False)


def _minimum(
    x_NC: Tensor, labels_N: Tensor, num_classes: int, regularization: float
) -> tuple[Tensor, Tensor]:
    """Weights (K, C) and bias (K,) of the minimum, by L-BFGS from zero."""
    weight_KC = torch.zeros(num_classes, x_NC.shape[1], dtype=x_NC.dtype, device=x_NC.device)
    bias_K = weight_KC.new_zeros(num_classes)
    parameters = [weight_KC.requires_grad_(), bias_K.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=_LARGEST_STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        fit = F.cross_entropy(x_NC @ weight_KC.T + bias_K, labels_N)
        total = fit + regularization / (2 * len(x_NC)) * weight_KC.square().sum()
        total.backward()
        return total

    solver.step(loss)
    return weight_KC.detach(), bias_K.detach()
