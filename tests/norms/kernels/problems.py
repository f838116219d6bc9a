"""Random DTN problems, and how far a float32 result may be from float64."""

import torch

from triptych.norms import DynamicTokenNorm


def make_norm(dim, heads, grid, seed=0, **options):
    norm = DynamicTokenNorm(dim, heads, grid, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return norm


def make_tokens(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_visible(sets, count, kept, seed=2):
    order = torch.rand(sets, count, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return torch.zeros(sets, count, dtype=torch.bool).scatter(1, order[:, :kept], True)


def results(norm, call, x, visible=None, seed=3):
    """Output, gradient of x, then of every parameter."""
    leaf = x.detach().clone().requires_grad_()
    norm.zero_grad()
    y = call(leaf, visible)
    gradient = make_tokens(*y.shape, seed=seed).to(y.dtype)
    y.backward(gradient)
    names = ["y", "x"] + [name for name, _ in norm.named_parameters()]
    values = [y.detach(), leaf.grad] + [p.grad.clone() for p in norm.parameters()]
    return dict(zip(names, values, strict=True))


def exact(norm, x, visible=None):
    """The same in float64 by torch operators."""
    norm.double()
    try:
        return results(norm, norm.reference, x.double(), visible)
    finally:
        norm.float()


def check(got, want, tolerance=2e-5):
    """Each to ``tolerance`` of the largest entry; a sum of parts that cancel, of 1."""
    for name, value in want.items():
        error = (got[name].double() - value).abs().max() / value.abs().max().clamp_min(0.1)
        assert error <= tolerance, f"{name}: {error:.1e}"
