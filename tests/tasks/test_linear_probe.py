"""The linear probe is the minimum that scikit-learn finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from triptych.tasks.linear_probe import fit_linear_probe


def blobs(count: int = 90, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = random.normal(size=(classes, 6)) * 2
    scales = np.array([1, 10, 0.1, 1, 3, 1])
    features = (centres[labels] + random.normal(size=(count, 6)) * 2) * scales + 5
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("regularization", [0.1, 1.0, 20.0])
def test_it_is_scikit_learns(regularization: float) -> None:
    features, labels = blobs()
    layer = fit_linear_probe(features, labels, num_classes=3, regularization=regularization)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    theirs = LogisticRegression(C=1 / regularization, tol=1e-10, max_iter=5000)
    theirs.fit(scaled, labels.numpy())
    ours = torch.softmax(layer(features), 1).numpy()
    assert np.allclose(ours, theirs.predict_proba(scaled), atol=2e-4)


def test_scale_and_place_of_features_change_nothing() -> None:
    features, labels = blobs()
    plain = fit_linear_probe(features, labels, num_classes=3)
    moved = features * 7 - 3
    other = fit_linear_probe(moved, labels, num_classes=3)
    assert torch.allclose(plain(features), other(moved), atol=1e-3)


def test_a_channel_without_variance_has_no_part() -> None:
    features, labels = blobs()
    features[:, 2] = 0.1
    layer = fit_linear_probe(features, labels, num_classes=3)
    assert not layer.weight[:, 2].any()
    rest = fit_linear_probe(features[:, [0, 1, 3, 4, 5]], labels, num_classes=3)
    assert torch.allclose(layer(features), rest(features[:, [0, 1, 3, 4, 5]]), atol=1e-4)


def test_few_and_separable_labels_stay_finite() -> None:
    layer = fit_linear_probe(torch.eye(3).repeat(1, 4), torch.arange(3), num_classes=5)
    assert layer.weight.isfinite().all()
    assert layer(torch.eye(3).repeat(1, 4)).argmax(1).tolist() == [0, 1, 2]


def test_features_must_be_finite() -> None:
    with pytest.raises(ValueError, match=r"^features hold") as failure:
        fit_linear_probe(torch.tensor([[1.0], [np.nan]]), torch.tensor([0, 1]), num_classes=2)
    assert str(failure.value) == (
        "features hold a value that is not finite, so no probe can be fitted"
    )
