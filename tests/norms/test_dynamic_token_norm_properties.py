"""DynamicTokenNorm against its definition with the whole matrix P, on random problems."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.norms import DynamicTokenNorm

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4}


def dense_norm(norm, x_BNC, visible_BT):
    """The definition: explicit scores of all pairs, one softmax over visible sources."""
    released, eps = norm.form == "released", norm.eps
    u = x_BNC.unflatten(2, (norm.num_heads, -1))
    u = u / (u.square().mean(3, keepdim=True) + eps).sqrt() if released else u
    own_mean = u.mean((2, 3), keepdim=True)
    own_variance = u.flatten(2).var(2, correction=int(released))[..., None, None]
    token = torch.arange(norm.grid.count)
    dy = token[None] // norm.grid.width - token[:, None] // norm.grid.width
    dx = token[None] % norm.grid.width - token[:, None] % norm.grid.width
    w = norm.pos_proj.weight.to(u.dtype)[..., None, None]
    scores_HST = w[:, 0] * dx + w[:, 1] * dy + w[:, 2] * (dx**2 + dy**2)
    hidden = ~visible_BT[:, None, :, None]
    p = scores_HST.masked_fill(hidden, -torch.inf).softmax(2)
    patches = u[:, norm.prefix_tokens :]
    mean = torch.einsum("bhst,bshd->bthd", p, patches)
    variance = torch.einsum("bhsq,bshd->bqhd", p, patches.square()) - mean.square()
    own = slice(norm.prefix_tokens, None)
    mean_ratio, ratio = norm.ratios(u.dtype)
    ratio = ratio[:, None]
    mean_ratio = 1 if mean_ratio is None else mean_ratio[:, None]
    mean = mean_ratio * own_mean[:, own] + (1 - mean_ratio) * mean
    variance = ratio * own_variance[:, own] + (1 - ratio) * variance
    mean = torch.cat(
        (own_mean[:, : norm.prefix_tokens].expand_as(u[:, : norm.prefix_tokens]), mean), 1
    )
    variance = torch.cat(
        (own_variance[:, : norm.prefix_tokens].expand_as(u[:, : norm.prefix_tokens]), variance), 1
    )
    z = (u - mean) / (variance + eps).sqrt()
    return z.flatten(2) * norm.weight + norm.bias


@st.composite
def problems(draw):
    """A norm with random parameters, tokens of the whole grid and a visible set."""
    heads = draw(st.integers(1, 5))
    features = draw(st.integers(2 if heads == 1 else 1, 4))
    sequence = draw(st.booleans())
    grid = (
        draw(st.integers(1, 24))
        if sequence
        else draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    )
    norm = DynamicTokenNorm(
        heads * features,
        heads,
        grid,
        form=draw(st.sampled_from(["released", "paper"])),
        mean=draw(st.sampled_from(["mixed", "token"])),
        prefix_tokens=draw(st.integers(0, 2)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        norm.pos_proj.weight.mul_(draw(st.sampled_from([0.0, 0.1, 0.5])))
    batch, count = draw(st.integers(1, 3)), norm.grid.count
    tokens = count + norm.prefix_tokens
    x = torch.randn(batch, tokens, norm.dim, generator=generator)
    kept = draw(st.integers(1, count))
    order = torch.rand(batch, count, generator=generator).argsort(1)
    visible = torch.zeros(batch, count, dtype=torch.bool).scatter(1, order[:, :kept], True)
    if draw(st.booleans()):
        visible = visible[:1].expand(batch, -1)
    return norm, x, visible


def shown(norm, visible):
    """Tokens that exist, prefix included."""
    prefix = torch.ones(len(visible), norm.prefix_tokens, dtype=torch.bool)
    return torch.cat((prefix, visible), 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems())
def test_values_equal_the_dense_definition(dtype, problem):
    norm, x, visible = problem
    norm.double()
    everything = torch.ones_like(visible)
    with torch.no_grad():
        want_all = dense_norm(norm, x.double(), everything)
        want = dense_norm(norm, x.double(), visible)
        norm.to(dtype)
        x = x.to(dtype)
        held = shown(norm, visible)
        shared = bool((visible == visible[:1]).all())
        mask = visible[0] if shared else visible
        got_all, got = norm(x), norm(x, mask)
        packed = norm(x[held].view(len(x), -1, norm.dim), mask)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got_all.double(), want_all, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got[held].double(), want[held], rtol=tolerance, atol=tolerance)
    assert (got[~held] == 0).all()
    torch.testing.assert_close(
        packed.flatten(0, 1).double(), want[held], rtol=tolerance, atol=tolerance
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problem=problems(), packed=st.booleans())
def test_gradients_equal_those_of_the_dense_definition(problem, packed):
    norm, x, visible = problem
    norm.double()
    held = shown(norm, visible)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(x.shape, dtype=torch.float64, generator=generator)[held]
    results = []
    for dense in (True, False):
        leaf = x.double().requires_grad_()
        norm.zero_grad()
        if dense:
            y = dense_norm(norm, leaf, visible)[held]
        elif packed:
            y = norm(leaf[held].view(len(x), -1, norm.dim), visible).flatten(0, 1)
        else:
            y = norm(leaf, visible)[held]
        y.backward(gradient)
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in norm.parameters()]
        results.append([leaf.grad, *own])
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max() + 1))
