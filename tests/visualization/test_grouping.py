"""Clusters of object tokens against the official cells, and against their definitions."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.visualization.conftest import REFERENCE

from triptych.visualization import grouping_metrics
from triptych.visualization.grouping import (
    MEASURES,
    adaptive_radius,
    cluster_objects,
    grouping_by_layer,
)
from triptych.visualization.object_tokens import object_tokens

OFFICIAL_NAME = {
    "purity": "stats_pur_matrix",
    "unique_label_rate": "stats_rate_uniq_label",
    "clusters_per_object": "stats_rate_clus_object",
    "in_cluster_cosine": "stats_intracluster",
    "in_object_cosine": "cosine_distance_layer",
    "silhouette": "stats_silhouette",
}
TOLERANCE = dict.fromkeys(MEASURES, 1e-6) | dict.fromkeys(MEASURES[:3], 1e-9)


def _masks(packed: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed, axis=-1)[:, : 224 * 224]).view(-1, 224, 224) > 0


def _check(hidden_LNC, objects, labels, official, sample):
    for layer, metrics in enumerate(grouping_by_layer(hidden_LNC, objects, labels)):
        for name, value in metrics.items():
            wanted = official(OFFICIAL_NAME[name])[layer]
            assert value == pytest.approx(wanted, abs=TOLERANCE[name]), (sample, layer, name)


@pytest.mark.parametrize("file", ["cluster_plain.npz", "cluster_synth.npz"])
def test_equals_the_official_cells(file):
    arrays = np.load(REFERENCE / file)
    names = json.loads(str(arrays["labels_json"]))
    seen = 0
    for sample, labels in enumerate(names):
        if not arrays[f"s{sample}/kept"]:
            continue
        objects = object_tokens(
            _masks(arrays[f"s{sample}/mask_packed"]), (14, 14), parity="published"
        )
        hidden = torch.from_numpy(arrays["hidden"][sample, :, 1:])
        clusterings = [cluster_objects(layer, objects) for layer in hidden]
        found = np.stack([clustering.clusters for clustering in clusterings])
        np.testing.assert_array_equal(found, arrays[f"s{sample}/dbscan_labels"])
        eps = [clustering.eps for clustering in clusterings]
        np.testing.assert_allclose(eps, arrays[f"s{sample}/eps"], rtol=1e-5)

        def official(name, sample=sample):
            each = f"s{sample}/{name}"
            return arrays[each] if each in arrays else arrays[name][sample]

        _check(hidden, objects, labels, official, sample)
        seen += 1
    assert seen >= 4


def test_published_parity_repeats_the_sum_of_ids():
    arrays = np.load(REFERENCE / "cluster_plain.npz")
    differ = 0
    for sample in range(6):
        masks = _masks(arrays[f"s{sample}/mask_packed"])
        published = object_tokens(masks, (14, 14), parity="published")
        sizes = [len(tokens) for tokens in published]
        assert sizes == arrays[f"s{sample}/object_sizes"].tolist()
        assert torch.cat(published).tolist() == arrays[f"s{sample}/all_object_idx"].tolist()
        corrected = object_tokens(masks, (14, 14))
        assert sum(map(len, corrected)) >= sum(sizes)
        differ += [len(tokens) for tokens in corrected] != sizes
    assert differ  # samples with shared patches are among them


def _two_blobs():
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) * 0.05
    x[:6, 0] += 5
    x[6:, 1] += 5
    return x, [torch.arange(6), torch.arange(6, 12)]


def test_separate_objects_are_pure():
    x, objects = _two_blobs()
    metrics = grouping_metrics(x, objects, ["dog", "cat"])
    assert metrics["unique_label_rate"] == metrics["clusters_per_object"] == 1
    assert metrics["purity"] >= 11 / 12  # DBSCAN may leave an outlier
    assert metrics["silhouette"] > 0.9


def test_equal_names_count_once():
    x, objects = _two_blobs()
    assert grouping_metrics(x, objects, ["dog", "dog"])["unique_label_rate"] == 1


def test_without_a_cluster_the_sentinels_of_the_released_code():
    # Steps inside an object alternate between 1 and 100, so that hardly anyone has 3 neighbours.
    x = torch.diag(torch.tensor([1.0, 50.0, 200.0, 800.0, 3200.0, 12800.0]))
    metrics = grouping_metrics(x, [torch.tensor([0, 1, 2, 3, 4, 5])], ["a"])
    alone = grouping_metrics(torch.eye(4)[[0, 1]] * 3, [torch.tensor([0, 1])], ["a"])
    assert alone["purity"] == alone["unique_label_rate"] == alone["clusters_per_object"] == 0
    assert alone["in_cluster_cosine"] == alone["silhouette"] == -1
    assert metrics["silhouette"] == 0  # one cluster


def test_tokens_that_are_all_the_same_form_one_cluster():
    metrics = grouping_metrics(torch.ones(6, 4), [torch.arange(3), torch.arange(3, 6)], ["a", "b"])
    assert metrics["clusters_per_object"] == 0.5
    assert metrics["in_object_cosine"] == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(3, 8))
def test_equals_the_definitions_spelt_out(seed, count, size):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count * size + 5, 6, generator=generator)
    order = torch.randperm(len(hidden), generator=generator)
    objects = [order[i * size : (i + 1) * size].sort().values for i in range(count)]
    labels = [f"c{i % 2}" for i in range(count)]
    clustering = cluster_objects(hidden, objects)
    metrics = grouping_metrics(hidden, objects, labels)
    good = sum(
        max(
            sum(1 for c, o in zip(clustering.clusters, clustering.objects, strict=True)
                if c == k and o == index)
            for index in range(count)
        )
        for k in range(clustering.count)
    )  # fmt: skip
    assert metrics["purity"] == pytest.approx(good / (count * size))
    cosines = []
    for tokens in objects:
        pairs = [(i, j) for n, i in enumerate(tokens) for j in tokens[n + 1 :]]
        each = [torch.cosine_similarity(hidden[i], hidden[j], 0).item() for i, j in pairs]
        cosines.append(sum(each) / len(each))
    assert metrics["in_object_cosine"] == pytest.approx(sum(cosines) / count, abs=1e-6)
    steps = [(hidden[o[1:]] - hidden[o[:-1]]).norm(dim=1).mean().item() for o in objects]
    assert adaptive_radius(hidden, objects) == pytest.approx(sum(steps) / count, rel=1e-5)


@pytest.mark.parametrize(
    ("hidden", "objects", "labels", "sentence"),
    [
        (torch.ones(4, 2), [], [], "there are 0 objects and 0 labels"),
        (torch.ones(4, 2), [torch.tensor([1])], ["a"], "object 0 (a) has 1 tokens; leave out"),
        (torch.ones(4, 2), [torch.tensor([1, 4])], ["a"], "has token 4, but there are 4 tokens"),
        (torch.full((4, 2), torch.nan), [torch.tensor([1, 2])], ["a"], "not finite"),
        (torch.ones(1, 4, 2), [torch.tensor([1, 2])], ["a"], "got 3 axes"),
    ],
)
def test_bad_input_is_told(hidden, objects, labels, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        grouping_metrics(hidden, objects, labels)
