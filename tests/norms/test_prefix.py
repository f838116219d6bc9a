"""Prefix tokens as sources and targets of DTN's neighbourhoods, against a dense definition."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.norms import DynamicTokenNorm, replace_norms

HEADS, WIDTH = 2, 8


def randomized(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return norm


def tokens(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(norm, x, visible):
    """One softmax over all sources, prefix and grid, for every target; then DTN's formula."""
    prefix, (rows, columns) = norm.prefix_tokens, (norm.grid.height, norm.grid.width)
    count = rows * columns
    place = torch.arange(count)
    dx = (place % columns)[None] - (place % columns)[:, None]
    dy = (place // columns)[None] - (place // columns)[:, None]
    y = torch.empty_like(x)
    for head in range(norm.num_heads):
        w = norm.pos_proj.weight[head]
        score = torch.zeros(prefix + count, prefix + count, dtype=x.dtype)
        score[prefix:, prefix:] = w[0] * dx + w[1] * dy + w[2] * (dx**2 + dy**2)
        score[:prefix] = norm.prefix_score[head][:, None]
        for sample in range(len(x)):
            held = torch.cat((torch.ones(prefix, dtype=torch.bool), visible[sample]))
            p = score.masked_fill(~held[:, None], -torch.inf).softmax(0)
            part = slice(head * WIDTH // norm.num_heads, (head + 1) * WIDTH // norm.num_heads)
            u = x[sample].unflatten(1, (norm.num_heads, -1))
            if norm.form == "released":
                u = u * (u.square().mean(2, keepdim=True) + norm.eps).rsqrt()
            own_mean = u.mean((1, 2))[:, None]
            own_variance = u.flatten(1).var(1, correction=int(norm.form == "released"))[:, None]
            u = u[:, head].masked_fill(~held[:, None], 0)
            mean = p.T @ u
            variance = p.T @ u.square() - mean.square()
            a, c = norm.ratios(x.dtype)
            a = torch.ones(()) if a is None else a[head]
            mean = a * own_mean + (1 - a) * mean
            variance = c[head] * own_variance + (1 - c[head]) * variance
            if norm.prefix == "source":
                mean[:prefix], variance[:prefix] = own_mean[:prefix], own_variance[:prefix]
            y[sample, :, part] = (u - mean) / (variance + norm.eps).sqrt()
    y = y * norm.weight + norm.bias
    held = torch.cat((torch.ones(len(x), prefix, dtype=torch.bool), visible), 1)
    return y.masked_fill(~held[..., None], 0)


@given(
    policy=st.sampled_from(["source", "member"]),
    form=st.sampled_from(["released", "paper"]),
    mean=st.sampled_from(["mixed", "token"]),
    grid=st.sampled_from([(3, 4), (1, 5), (4, 1), 6]),
    prefix_tokens=st.integers(1, 3),
    layout=st.sampled_from(["whole", "masked", "packed"]),
    seed=st.integers(0, 99),
)
def test_dense_definition(policy, form, mean, grid, prefix_tokens, layout, seed):
    norm = DynamicTokenNorm(
        WIDTH, HEADS, grid, form=form, mean=mean, prefix_tokens=prefix_tokens, prefix=policy
    )
    randomized(norm.double(), seed)
    count = norm.grid.count
    x = tokens(2, prefix_tokens + count, WIDTH, seed=seed)
    order = torch.rand(2, count, generator=torch.Generator().manual_seed(seed)).argsort(1)
    visible = order < (count if layout == "whole" else (count + 1) // 2)
    with torch.no_grad():
        want = dense(norm, x, visible)
        if layout == "packed":
            held = torch.cat((torch.ones(2, prefix_tokens, dtype=torch.bool), visible), 1)
            got, want = norm(x[held].view(2, -1, WIDTH), visible), want[held].view(2, -1, WIDTH)
        else:
            got = norm(x, None if layout == "whole" else visible)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_prefix_token_of_no_weight_is_no_source():
    """A score of minus infinity in effect: the grid is normalised as with "own"."""
    source = randomized(DynamicTokenNorm(WIDTH, HEADS, (3, 4), prefix_tokens=1, prefix="source"))
    own = DynamicTokenNorm(WIDTH, HEADS, (3, 4), prefix_tokens=1)
    state = source.state_dict()
    del state["prefix_score"]
    own.load_state_dict(state)
    with torch.no_grad():
        source.prefix_score.fill_(-200.0)
    x = tokens(2, 13, WIDTH).float()
    torch.testing.assert_close(source(x), own(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["source", "member"])
@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(policy, form, masked):
    norm = DynamicTokenNorm(4, 2, (3, 2), form=form, prefix_tokens=2, prefix=policy)
    randomized(norm.double())
    visible = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]) > 0 if masked else None
    names, values = zip(*norm.named_parameters(), strict=True)
    assert "prefix_score" in names

    def call(x, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(norm, named, (x, visible))

    assert torch.autograd.gradcheck(call, (tokens(2, 8, 4).requires_grad_(), *values))


@pytest.mark.parametrize("policy", ["source", "member"])
def test_nothing_visible_stays_finite(policy):
    norm = DynamicTokenNorm(WIDTH, HEADS, (3, 3), prefix_tokens=1, prefix=policy)
    x = tokens(2, 10, WIDTH).float().requires_grad_()
    y = norm(x, torch.tensor([[True] * 9, [False] * 9]))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert norm.prefix_score.grad.isfinite().all()


def test_replace_norms_hands_the_policy_on():
    model = build_backbone(
        BackboneSpec(Family.vit, embed_dim=16, depths=(4,), num_heads=(2,), patch_size=4),
        image_size=(8, 8),
        channels=1,
        num_classes=3,
    )
    sites = replace_norms(model, "dtn", prefix="member", last_plain=0)
    norms = [model.get_submodule(site.path) for site in sites]
    assert [norm.prefix for norm in norms] == ["member"] * 8
    assert all(norm.prefix_score.shape == (2, 1) for norm in norms)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(norm.prefix_score.grad.isfinite().all() for norm in norms)


def make(**options):
    return DynamicTokenNorm(WIDTH, HEADS, (4, 4), **options)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: make(prefix="late", prefix_tokens=1),
            "prefix must be 'own', 'source' or 'member', got 'late'",
        ),
        (
            lambda: make(prefix="source"),
            "prefix='source' needs prefix tokens, but prefix_tokens=0",
        ),
        (
            lambda: make(prefix="member", prefix_tokens=1, pool_to=2),
            "prefix='member' needs exact statistics, but pool_to=2; leave pool_to None",
        ),
        (
            lambda: replace_norms(nn.Module(), "rms", prefix="source"),
            "prefix='source' is an option of 'dtn' alone, but norm='rms'",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
