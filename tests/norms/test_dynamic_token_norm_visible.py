"""DynamicTokenNorm where only some tokens are visible."""

import pytest
import torch
from torch.nn import functional as F

from triptych.norms import DynamicTokenNorm


def randomized(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return norm


def tokens(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_visible_rectangle_is_a_smaller_grid():
    norm = randomized(DynamicTokenNorm(8, 4, (6, 7)).double())
    small = DynamicTokenNorm(8, 4, (3, 4)).double()
    small.load_state_dict(norm.state_dict())
    x = tokens(2, 6, 7, 8, dtype=torch.float64)
    visible = torch.zeros(6, 7, dtype=torch.bool)
    visible[2:5, 1:5] = True
    got = norm(x, visible.flatten())[:, 2:5, 1:5]
    torch.testing.assert_close(got, small(x[:, 2:5, 1:5]), rtol=1e-10, atol=1e-10)


def test_everything_visible_is_no_mask():
    norm = randomized(DynamicTokenNorm(8, 2, (4, 4), prefix_tokens=1).double())
    x = tokens(2, 17, 8, dtype=torch.float64)
    got = norm(x, torch.ones(2, 16, dtype=torch.bool))
    torch.testing.assert_close(got, norm(x), rtol=1e-12, atol=1e-12)


def test_absent_tokens_are_ignored_whatever_they_hold():
    norm = randomized(DynamicTokenNorm(8, 2, (4, 4), prefix_tokens=1))
    visible = torch.rand(2, 16, generator=torch.Generator().manual_seed(3)) < 0.5
    held = F.pad(visible, (1, 0), value=True)
    clean = tokens(2, 17, 8)
    dirty = clean.masked_fill(~held[..., None], torch.nan).requires_grad_()
    y = norm(dirty, visible)
    assert torch.equal(y, norm(clean, visible))
    y.sum().backward()
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~held] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in norm.parameters())


def test_a_sample_without_visible_tokens_stays_finite():
    norm = randomized(DynamicTokenNorm(8, 2, (3, 3)))
    x = tokens(2, 9, 8).requires_grad_()
    y = norm(x, torch.tensor([[True] * 9, [False] * 9]))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("w2", [1.0, 5.0, -60.0])
def test_visible_statistics_survive_underflow(w2, share, packed):
    """Float32 keeps to float64 where the visible tokens hold next to none of the full weight."""
    norm = randomized(DynamicTokenNorm(8, 2, (14, 14)))
    with torch.no_grad():
        norm.pos_proj.weight.copy_(torch.tensor([[3.0, -2.0, 1.0], [-200.0, 90.0, 1.0]]))
        norm.pos_proj.weight[:, 2] = w2
    order = torch.rand(2, 196, generator=torch.Generator().manual_seed(5)).argsort(1)
    visible = torch.zeros(2, 196, dtype=torch.bool).scatter(1, order[:, : int(196 * share)], True)
    x = tokens(2, 196, 8)
    index = visible.nonzero()[:, 1].view(2, -1)
    score = torch.zeros(2, 196, 196, dtype=torch.float64)
    for head, (w0, w1, w_2) in enumerate(norm.pos_proj.weight.double().tolist()):
        t = torch.arange(196)
        dx, dy = t[None] % 14 - t[:, None] % 14, t[None] // 14 - t[:, None] // 14
        score[head] = w0 * dx + w1 * dy + w_2 * (dx**2 + dy**2)
    p = score.masked_fill(~visible[:, None, :, None], -torch.inf).softmax(2)
    u = x.double().unflatten(2, (2, 4))
    u = u * (u.square().mean(3, keepdim=True) + 1e-5).rsqrt()
    mean = torch.einsum("bhst,bshd->bthd", p, u)
    variance = torch.einsum("bhst,bshd->bthd", p, u.square()) - mean.square()
    a, c = (ratio[:, None].double() for ratio in norm.ratios())
    mean = a * u.mean((2, 3), keepdim=True) + (1 - a) * mean
    variance = c * u.flatten(2).var(2)[..., None, None] + (1 - c) * variance
    want = ((u - mean) / (variance + 1e-5).sqrt()).flatten(2) * norm.weight + norm.bias
    if packed:
        got = norm(x.gather(1, index[..., None].expand(-1, -1, 8)), visible).flatten(0, 1)
    else:
        got = norm(x, visible)[visible]
    torch.testing.assert_close(got.double(), want[visible], rtol=1e-4, atol=1e-4)


def test_pooled_statistics_of_visible_cells_equal_those_of_the_cells_grid():
    """Cells that are wholly visible or wholly hidden: pooling and masking commute."""
    norm = randomized(DynamicTokenNorm(8, 2, (8, 12), pool_to=4).double())
    assert norm.cell == (2, 3)
    cells = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    visible = cells.repeat_interleave(2, 0).repeat_interleave(3, 1).flatten()
    x = tokens(2, 96, 8, dtype=torch.float64)
    whole = norm(x, visible)
    torch.testing.assert_close(norm(x[:, visible], visible), whole[:, visible])
    constant = x.view(2, 4, 2, 4, 3, 8)[:, :, :1, :, :1].expand(2, 4, 2, 4, 3, 8)
    coarse = DynamicTokenNorm(8, 2, (4, 4)).double()
    coarse.load_state_dict(norm.state_dict())
    got = norm(constant.reshape(2, 96, 8), visible).view(2, 4, 2, 4, 3, 8)[:, :, 1, :, 2]
    want = coarse(constant[:, :, 0, :, 0], cells.flatten())
    torch.testing.assert_close(got, want)
