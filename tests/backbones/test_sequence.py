"""Encoder classifiers of sequences: padding, determinism, norms, refusals."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.backbones.sequence import build_sequence_classifier
from triptych.norms import DynamicTokenNorm, replace_norms

FAMILIES = [Family.transformer, Family.bigbird, Family.reformer]
LENGTH = 30


def build(family, norm="ln", length=LENGTH, **options):
    given = {"embed_dim": 16, "depths": (2,), "num_heads": (4,), "mlp_ratio": 2.0}
    given |= {"block_size": 4, "random_blocks": 1, "initialization": "xavier"} | options
    torch.manual_seed(0)
    model = build_sequence_classifier(
        BackboneSpec(family, **given), length=length, vocabulary=17, num_classes=10
    )
    replace_norms(model, norm)
    return model


def batch(count=4, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 17, (count, length), generator=generator)
    tokens[:, 0] = 1
    tokens[0, length // 2 :] = 0
    return tokens, torch.randint(0, 10, (count,), generator=generator)


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family, norm):
    model = build(family, norm).train()
    tokens, labels = batch()
    logits = model(tokens)
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, labels).backward()
    silent = {
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    }
    assert silent == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_every_layer_are_replaced(family):
    model = build(family)
    sites = replace_norms(model, "dtn")
    assert len(sites) == 4
    assert all(isinstance(model.get_submodule(s.path), DynamicTokenNorm) for s in sites)
    assert {site.grid_size for site in sites} == {32}


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("family", [Family.transformer, Family.bigbird])
def test_what_padding_holds_and_how_much_there_is_counts_nothing(family, norm):
    """Full attention at any padding; BigBird's blocks move with the length, so at one length."""
    model = build(family, norm).eval()
    tokens, _ = batch()
    with torch.no_grad():
        model.encoder.get_input_embeddings().weight[0] = 5.0
        got = model(tokens)
        model.encoder.get_input_embeddings().weight[0] = -3.0
        torch.testing.assert_close(model(tokens), got, rtol=1e-5, atol=1e-6)
        if family is Family.transformer:
            alone = model(tokens[:1, : LENGTH // 2])
            torch.testing.assert_close(alone, got[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_deterministic_whatever_was_drawn_before(family):
    """Reformer draws seeds of its own: nothing that is trained may depend on them."""
    weights = []
    for seed in (3, 4):
        model = build(family, "dtn").train()
        torch.manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            tokens, labels = batch(seed=step)
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), labels).backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_computes_what_training_computes(family):
    model = build(family, "dtn")
    tokens, _ = batch()
    with torch.no_grad():
        trained = model.train()(tokens)
        torch.testing.assert_close(model.eval()(tokens), trained, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(copy.deepcopy(model)(tokens), trained, rtol=1e-5, atol=1e-6)


def test_sparse_attention_is_sparse_and_full_attention_full():
    """The same weights but for the attention; a token far from all others shows it."""
    full, sparse = build(Family.transformer), build(Family.bigbird)
    sparse.load_state_dict(full.state_dict())
    tokens, _ = batch()
    with torch.no_grad():
        assert not torch.allclose(full(tokens), sparse(tokens), atol=1e-4)
        assert sparse.encoder.attention_type == "block_sparse"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: build(Family.bigbird, length=28),
            "sequences of 28 tokens are too short for the sparse attention of BigBird with "
            "block_size=4 and random_blocks=1, which needs more than 28; use smaller blocks, or "
            "the family transformer",
        ),
        (
            lambda: build(Family.reformer)(batch(length=33)[0]),
            "sequences of 33 tokens are longer than the 30 that the encoder was built for",
        ),
        (
            lambda: build_backbone(BackboneSpec(Family.bigbird), image_size=(8, 8)),
            "the family bigbird takes no images; build it with build_sequence_classifier",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
