"""Nearest neighbours against the definition, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.tasks import knn
from triptych.tasks.knn import knn_votes


def naive(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, t: float) -> np.ndarray:
    """exp(cosine / t) of the k most similar, added up by class."""
    cosine = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in bank]
    nearest = sorted(range(len(bank)), key=lambda index: -cosine[index])[:k]
    votes = np.zeros(labels.max() + 1)
    for index in nearest:
        votes[labels[index]] += math.exp(cosine[index] / t)
    return votes / votes.sum()


@given(
    seed=st.integers(0, 99),
    neighbours=st.integers(1, 30),
    temperature=st.sampled_from([0.07, 0.5, 2.0]),
)
@settings(max_examples=20)
def test_as_by_loops(seed: int, neighbours: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    bank, queries = random.normal(size=(25, 6)), random.normal(size=(7, 6)) * 3
    labels = np.arange(25) % 4
    found = knn_votes(
        torch.from_numpy(bank),
        torch.from_numpy(labels),
        torch.from_numpy(queries),
        num_classes=4,
        neighbours=neighbours,
        temperature=temperature,
    )
    want = [naive(bank, labels, query, min(neighbours, 25), temperature) for query in queries]
    assert np.allclose(found.numpy(), np.stack(want), atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(20, 5, generator=random), torch.randn(9, 5, generator=random)
    labels = torch.arange(20) % 3
    whole = knn_votes(bank, labels, queries, num_classes=3)
    monkeypatch.setattr(knn, "_CHUNK", 2)
    assert torch.allclose(whole, knn_votes(bank, labels, queries, num_classes=3), atol=1e-6)


def test_length_of_a_feature_counts_for_nothing() -> None:
    bank, labels = torch.eye(3), torch.arange(3)
    queries = torch.tensor([[100.0, 1, 1], [0.01, 0, 0.001]])
    assert knn_votes(bank, labels, queries, num_classes=3).argmax(1).tolist() == [0, 0]


def test_a_cold_vote_is_that_of_the_nearest_and_overflows_nowhere() -> None:
    bank = torch.tensor([[1.0, 0], [0.9, 0.1], [0.9, 0.1]])
    votes = knn_votes(
        bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0]]), num_classes=2, temperature=1e-6
    )
    assert votes.tolist() == [[1.0, 0.0]]


def test_features_must_fit() -> None:
    with pytest.raises(ValueError, match=r"^labelled features") as failure:
        knn_votes(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(1, 3), num_classes=2)
    assert str(failure.value) == (
        "labelled features of shape (0, 3) and others of shape (1, 3) do not fit; give one "
        "labelled image or more, and features of one width"
    )
