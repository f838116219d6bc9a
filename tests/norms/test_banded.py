"""Long sequences within the band of their position weights, against all pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triptych.norms import DynamicTokenNorm
from triptych.norms.banded import Band, band_of, in_one_piece, smooth_banded
from triptych.norms.position_weights import axis_scores


def all_pairs(x_BTHD: Tensor, weight_H3: Tensor, visible_MT: Tensor) -> tuple[Tensor, Tensor]:
    """E[x] and E[x²] by a softmax over every visible source."""
    scores_HST = axis_scores(weight_H3[:, 0], weight_H3[:, 2], x_BTHD.shape[1])
    absent_MS = ~visible_MT[:, None, :, None]
    kernel_MHST = scores_HST.masked_fill(absent_MS, -torch.inf).softmax(2).nan_to_num()
    kernel_BHST = kernel_MHST.expand(len(x_BTHD), -1, -1, -1)
    return tuple(torch.einsum("bhst,bshd->bthd", kernel_BHST, v) for v in (x_BTHD, x_BTHD**2))


@given(
    length=st.integers(200, 420),
    squared=st.floats(-3, -0.08),
    linear=st.floats(-4, 4),
    first=st.integers(0, 60),
    visible=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_a_band_gives_what_all_pairs_give(length, squared, linear, first, visible, seed):
    generator = torch.Generator().manual_seed(seed)
    weight_H3 = torch.tensor([[linear, 9.0, squared], [0.0, 9.0, -1.0]], dtype=torch.float64)
    band = band_of(weight_H3, length)
    if band is None:
        return
    visible_MT = torch.zeros(2, length, dtype=torch.bool)
    visible_MT[0, first : first + visible] = True
    visible_MT[1] = True
    shape = (2, length, 2, 3)
    x_BTHD = torch.randn(shape, generator=generator, dtype=torch.float64)
    x_BTHD = x_BTHD * visible_MT[..., None, None]
    for ours, dense in zip(
        smooth_banded(x_BTHD, weight_H3, band, visible_MT),
        all_pairs(x_BTHD, weight_H3, visible_MT),
        strict=True,
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours[visible_MT], dense[visible_MT], rtol=0, atol=1e-13)


def norms(length: int) -> tuple[DynamicTokenNorm, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    norm = DynamicTokenNorm(16, 4, length).double()
    x = torch.randn(3, length, 16, generator=generator, dtype=torch.float64)
    visible = torch.arange(length) < torch.tensor([[length], [length - 77], [5]])
    return norm, x, visible


def gradients(norm: DynamicTokenNorm, x: Tensor, visible: Tensor | None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x, visible=visible)
    kept = y if visible is None else y[visible]
    return [kept, *torch.autograd.grad(kept.sin().sum(), (x, *norm.parameters()))]


@pytest.mark.parametrize("padded", [False, True])
def test_a_long_norm_has_the_values_and_gradients_of_all_pairs(padded, monkeypatch):
    norm, x, mask = norms(700)
    assert band_of(norm.pos_proj.weight, 700) == Band(8, 64)
    visible = mask if padded else None
    ours = gradients(norm, x, visible)
    monkeypatch.setattr("triptych.norms.statistics.band_of", lambda *_: None)
    for ours_, dense in zip(ours, gradients(norm, x, visible), strict=True):
        torch.testing.assert_close(ours_, dense, rtol=1e-9, atol=1e-10)


def test_holes_need_every_pair():
    visible = torch.ones(2, 300, dtype=torch.bool)
    assert in_one_piece(visible)
    visible[1, 40:250] = False
    assert not in_one_piece(visible)
    norm, x, _ = norms(300)
    y = norm(x[:2], visible=visible)
    shorter = torch.cat((x[1, :40], x[1, 250:]))[None]
    torch.testing.assert_close(y[1][visible[1]], norm(shorter, visible=visible[1])[0])


@pytest.mark.parametrize("squared", [0.0, 1e-4, -1e-5, float("nan")])
def test_flat_growing_or_wide_weights_have_no_band(squared):
    assert band_of(torch.tensor([[0.0, 0.0, -1.0], [0.01, 0.0, squared]]), 2048) is None


def test_a_short_sequence_takes_all_pairs():
    weight_H3 = torch.tensor([[0.0, 0.0, -1.0]])
    assert band_of(weight_H3, 151) is None
    assert band_of(weight_H3, 152) == Band(6, 64)
