"""The sites in BigBird and Reformer, over sequences of the greatest length."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    BigBirdModel,
    ReformerConfig,
    ReformerForSequenceClassification,
    ReformerModel,
)

from triptych.norms import NORM_NAMES, DynamicTokenNorm, Replacement, replace_norms

LENGTH = 32


def bigbird(kind=BigBirdForSequenceClassification):
    config = BigBirdConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        attention_type="original_full",
        bos_token_id=1,
        eos_token_id=2,
        sep_token_id=3,
        pad_token_id=0,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    return kind(config)


def reformer(kind=ReformerForSequenceClassification, **options):
    config = ReformerConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_head_size=4,
        feed_forward_size=32,
        attn_layers=["local", "lsh"],
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_buckets=4,
        num_hashes=1,
        axial_pos_embds=False,
        max_position_embeddings=LENGTH,
        is_decoder=False,
        pad_token_id=0,
        eos_token_id=2,
        num_labels=3,
        hash_seed=0,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
        **options,
    )
    torch.manual_seed(0)
    return kind(config)


def tokens():
    return torch.randint(4, 20, (2, LENGTH), generator=torch.Generator().manual_seed(1))


PATHS = {
    bigbird: ("bert.encoder.layer", "attention.output.LayerNorm", "output.LayerNorm"),
    reformer: ("reformer.encoder.layers", "attention.layer_norm", "feed_forward.layer_norm"),
}


@pytest.mark.parametrize("build", PATHS)
def test_sites_are_the_norms_of_every_layer(build):
    model = build()
    stem, *norms = PATHS[build]
    plain = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert replace_norms(model, "dtn") == [
        Replacement(f"{stem}.{layer}.{norm}", 16, 4, LENGTH, 0)
        for layer in (0, 1)
        for norm in norms
    ]
    made = [m for m in model.modules() if isinstance(m, DynamicTokenNorm)]
    assert len(made) == 4
    assert all(str(m.grid) == f"1x{LENGTH}" and m.pos_proj.sequence for m in made)
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) == len(plain) - 4


@pytest.mark.parametrize(("build", "kind"), [(bigbird, BigBirdModel), (reformer, ReformerModel)])
def test_the_bare_encoder_has_the_same_sites(build, kind):
    whole = [site.path.split(".", 1)[1] for site in replace_norms(build(), "dtn")]
    assert [site.path for site in replace_norms(build(kind), "dtn")] == whole


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("build", PATHS)
def test_every_norm_trains(build, norm):
    model = build().train()
    sites = replace_norms(model, norm)
    assert bool(sites) == (norm != "ln")
    loss = model(tokens(), labels=torch.tensor([0, 1])).loss
    loss.backward()
    for site in sites:
        for name, parameter in model.get_submodule(site.path).named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("build", PATHS)
def test_ratio_one_in_the_paper_form_is_the_layer_norm_it_replaced(build):
    model = build().eval()
    with torch.no_grad():
        want = model(tokens()).logits
        for site in replace_norms(model, "dtn", form="paper"):
            norm = model.get_submodule(site.path)
            norm.eps = 1e-12
            norm.mean_norm_weight.fill_(100.0)
        torch.testing.assert_close(model(tokens()).logits, want, rtol=1e-4, atol=1e-5)


def test_locality_outlives_the_initialization_of_transformers():
    model = bigbird()
    sites = replace_norms(model, "dtn")
    before = [model.get_submodule(site.path).pos_proj.weight.clone() for site in sites]
    model.apply(model._init_weights)
    for site, weight in zip(sites, before, strict=True):
        assert torch.equal(model.get_submodule(site.path).pos_proj.weight, weight)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: replace_norms(reformer(chunk_size_feed_forward=8), "dtn"),
            "chunk_size_feed_forward=8 hides neighbouring tokens from the norm of a Reformer's "
            "feed-forward layer; set it to 0",
        ),
        (
            lambda: replace_norms(
                BertModel(
                    BertConfig(
                        vocab_size=9,
                        hidden_size=8,
                        num_hidden_layers=1,
                        num_attention_heads=2,
                        intermediate_size=8,
                    )
                ),
                "dtn",
            ),
            "norms cannot be put into a BertModel; the backbones known are BigBird, LeViT, PVT, "
            "PVT v2, Reformer, Swin, T2T-ViT, Twins and ViT (DeiT), or any with a method "
            "norm_sites()",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
