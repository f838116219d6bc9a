"""Padded sequences: DTN's statistics are over real tokens, in the norm and inside the encoders."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    BigBirdModel,
    ReformerConfig,
    ReformerForSequenceClassification,
    ReformerModel,
)

from triptych.norms import DynamicTokenNorm, replace_norms

LONGEST, WIDTH, HEADS, LAYERS = 24, 16, 4, 2
SIZES = {
    "vocab_size": 20,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
}
LENGTHS = (5, 17, 24)


def bigbird(kind=BigBirdForSequenceClassification, **options):
    options = {"attention_type": "original_full", "attention_probs_dropout_prob": 0.0} | options
    torch.manual_seed(0)
    return kind(
        BigBirdConfig(intermediate_size=32, bos_token_id=1, sep_token_id=3, **SIZES, **options)
    )


def reformer(kind=ReformerForSequenceClassification, chunk=LONGEST):
    """With a chunk as long as the sequence: shorter chunks see around the end of a sequence."""
    torch.manual_seed(0)
    return kind(
        ReformerConfig(
            attention_head_size=4,
            feed_forward_size=32,
            attn_layers=["local", "lsh"],
            local_attn_chunk_length=chunk,
            lsh_attn_chunk_length=chunk,
            num_buckets=2,
            num_hashes=1,
            axial_pos_embds=False,
            is_decoder=False,
            hash_seed=0,
            local_attention_probs_dropout_prob=0.0,
            lsh_attention_probs_dropout_prob=0.0,
            **SIZES,
        )
    )


def with_dtn(model, **options):
    generator = torch.Generator().manual_seed(7)
    for site in replace_norms(model, "dtn", **options):
        norm = model.get_submodule(site.path)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def padded_batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (len(LENGTHS), LONGEST), generator=generator)
    mask = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    return ids.masked_fill(~mask, 0), mask.long()


@given(
    form=st.sampled_from(["released", "paper"]),
    mean=st.sampled_from(["mixed", "token"]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    left=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_of_the_norm_is_every_sequence_alone(
    form, mean, lengths, left, double, seed
):
    dtype = torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    norm = DynamicTokenNorm(8, 2, 40, form=form, mean=mean)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    norm.to(dtype)
    longest = max(lengths)
    x = torch.randn(len(lengths), longest, 8, generator=generator, dtype=dtype)
    place = torch.arange(longest)
    visible = place < torch.tensor(lengths)[:, None]
    if left:
        visible = visible.flip(1)
    y = norm(x.masked_fill(~visible[..., None], torch.nan), visible)
    for sample, length in enumerate(lengths):
        alone = DynamicTokenNorm(8, 2, length, form=form, mean=mean).to(dtype)
        alone.load_state_dict(norm.state_dict())
        tolerance = 1e-9 if double else 2e-4
        torch.testing.assert_close(
            y[sample : sample + 1, visible[sample]],
            alone(x[sample : sample + 1, visible[sample]]),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("squared", [1.0, -300.0])
def test_a_short_sequence_survives_underflow(squared):
    """Position weights that point far beyond the end of what is real."""
    norm = DynamicTokenNorm(8, 2, 64)
    with torch.no_grad():
        norm.pos_proj.weight[:, 0] = 400.0
        norm.pos_proj.weight[:, 2] = squared
    x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(2))
    visible = torch.arange(64) < torch.tensor([[9], [30]])
    y = norm(x, visible)
    for sample, length in enumerate((9, 30)):
        alone = DynamicTokenNorm(8, 2, length).double()
        alone.load_state_dict(norm.state_dict())
        want = alone(x[sample : sample + 1, :length].double()).float()
        torch.testing.assert_close(y[sample : sample + 1, :length], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["ln", "released", "paper"])
@pytest.mark.parametrize("build", [bigbird, reformer])
def test_a_padded_batch_of_an_encoder_is_every_sequence_alone(build, norm):
    model = build().eval()
    if norm != "ln":
        with_dtn(model, form=norm)
    ids, mask = padded_batch()
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        for sample, length in enumerate(LENGTHS):
            alone = model(ids[sample : sample + 1, :length]).logits
            torch.testing.assert_close(together[sample : sample + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "kind"), [(bigbird, BigBirdModel), (reformer, ReformerModel)])
def test_the_bare_encoder_listens_too(build, kind):
    model = with_dtn(build(kind)).eval()
    ids, mask = padded_batch()
    with torch.no_grad():
        got = model(ids, attention_mask=mask).last_hidden_state
        embedded = model.get_input_embeddings()(ids)
        other = model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        alone = model(ids[:1, :5]).last_hidden_state
    torch.testing.assert_close(got, other)
    torch.testing.assert_close(got[:1, :5], alone, rtol=1e-4, atol=1e-5)


def test_block_sparse_attention_pads_for_itself():
    """What the encoder adds to fill its blocks is no token either."""
    model = bigbird(attention_type="block_sparse", block_size=2, num_random_blocks=1)
    with_dtn(model.eval())
    seen = []
    norm = next(m for m in model.modules() if isinstance(m, DynamicTokenNorm))
    norm.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(kwargs["visible"]), with_kwargs=True
    )
    ids, mask = padded_batch()
    with torch.no_grad():
        model(ids[:, :21], attention_mask=mask[:, :21])
    assert seen[0].shape == (3, 22)
    assert torch.equal(seen[0][:, :21], mask[:, :21] > 0)
    assert not seen[0][:, 21].any()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("build", [bigbird, reformer])
def test_gradients_of_a_padded_batch_are_those_of_every_sequence_alone(build, between):
    """Reformer runs its layers again in the backward pass, maybe after another forward pass."""
    model = with_dtn(build()).double().train()
    ids, mask = padded_batch()

    def gradients(losses):
        model.zero_grad()
        for loss in losses:
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = gradients(
        model(ids[sample : sample + 1, :length]).logits.square().sum()
        for sample, length in enumerate(LENGTHS)
    )
    loss = model(ids, attention_mask=mask).logits.square().sum()
    if between:
        model(ids[:, :9], attention_mask=mask[:, :9])
    got = gradients([loss])
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("build", [bigbird, reformer])
def test_padding_gets_no_gradient_and_gives_none(build):
    model = with_dtn(build()).train()
    ids, mask = padded_batch()
    embedded = model.get_input_embeddings()(ids).detach()
    others = torch.where(mask[..., None] > 0, embedded, embedded + 3.0)
    one, two = (e.clone().requires_grad_() for e in (embedded, others))
    got = model(inputs_embeds=one, attention_mask=mask).logits
    again = model(inputs_embeds=two, attention_mask=mask).logits
    torch.testing.assert_close(got, again, rtol=1e-5, atol=1e-6)
    got.square().sum().backward()
    assert one.grad[mask > 0].abs().max() > 0
    torch.testing.assert_close(
        one.grad[mask == 0], torch.zeros_like(one.grad[mask == 0]), rtol=0, atol=1e-7
    )


def test_a_deep_copy_listens_to_its_own_encoder():
    model = with_dtn(bigbird()).eval()
    twin = copy.deepcopy(model)
    ids, mask = padded_batch()
    masks = []
    norm = next(m for m in twin.modules() if isinstance(m, DynamicTokenNorm))
    norm.register_forward_hook(lambda _, args, kwargs, out: masks.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits
        assert masks == []
        assert torch.equal(twin(ids, attention_mask=mask).logits, want)
    assert torch.equal(masks[0]["visible"], mask > 0)


def test_a_mask_of_another_shape_is_refused():
    model = with_dtn(bigbird()).eval()
    ids, mask = padded_batch()
    sentence = (
        "attention_mask must be (batch, tokens), 1 at real tokens and 0 at padding, for a norm "
        "that looks at neighbouring tokens; got (3, 1, 24, 24)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model(ids, attention_mask=mask[:, None, None].expand(-1, -1, LONGEST, -1))
