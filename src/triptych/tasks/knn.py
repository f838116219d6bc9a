"""The weighted nearest-neighbour classifier on frozen features.

Wu et al. (CVPR 2018), section 3.4, with the settings of DINO (Caron et al., ICCV 2021, section
4.1 and appendix F.1): k = 20, temperature 0.07, cosine similarity, images without augmentation.

Shapes: N labelled images, M images to classify, C channels of a feature, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Images to classify at a time: bounds the (chunk, N) similarities.
_CHUNK = 256


def knn_votes(
    labelled_NC: Tensor,
    labels_N: Tensor,
    features_MC: Tensor,
    *,
    num_classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Share of the votes that each class gets, (M, K), rows adding up to 1.

    The ``neighbours`` labelled images of highest cosine similarity s vote for their class with
    weight exp(s / ``temperature``); all vote where there are fewer.

    Raises:
        ValueError: no labelled image, or features of another width.
    """
    if not len(labelled_NC) or labelled_NC.shape[1] != features_MC.shape[1]:
        raise ValueError(
            f"labelled features of shape {tuple(labelled_NC.shape)} and others of shape "
            f"{tuple(features_MC.shape)} do not fit; give one labelled image or more, and features "
            "of one width"
        )
    bank_CN = F.normalize(labelled_NC.float(), dim=1).T
    found = []
    for chunk in features_MC.split(_CHUNK):
        similarity = F.normalize(chunk.float(), dim=1) @ bank_CN
        top, places = similarity.topk(min(neighbours, len(labels_N)), dim=1)
        # A softmax is exp(s / T) over a sum: the same votes, and nothing overflows.
        weights = torch.softmax(top / temperature, dim=1)
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        found.append(votes.scatter_add_(1, labels_N[places], weights))
    return torch.cat(found)
