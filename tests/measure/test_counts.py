"""Parameters, multiply-adds and bytes kept, against counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from triptych.measure import Candidate, count_parameters, macs_per_image, saved_for_backward

BYTES = 2**20


def candidate(model, shape, *, images=4, **options):
    defaults = {
        "loss": lambda model, batch: model(batch).sum(),
        "infer": lambda model, batch: model(batch),
    }
    return Candidate(model, lambda: torch.randn(images, *shape), images, **defaults | options)


def test_parameters():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.BatchNorm1d(5))
    model[1].bias.requires_grad_(False)
    assert count_parameters(model) == (3 * 5 + 5 + 5 * 5 + 5 + 2 * 5, 3 * 5 + 5 + 5 * 5 + 10)


def test_shared_parameters_count_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second)) == (16 + 4 + 4,) * 2


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_macs_of_linear(width_in, width_out, tokens, images):
    model = nn.Linear(width_in, width_out)
    counted = macs_per_image(candidate(model, (tokens, width_in), images=images))
    assert counted == tokens * width_in * width_out


def test_macs_of_convolution():
    model = nn.Conv2d(3, 8, kernel_size=5, stride=2, padding=2)
    assert macs_per_image(candidate(model, (3, 16, 12))) == 5 * 5 * 3 * 8 * (8 * 6)
    depthwise = nn.Conv2d(6, 6, kernel_size=3, padding=1, groups=6)
    assert macs_per_image(candidate(depthwise, (6, 7, 7))) == 3 * 3 * 6 * 7 * 7


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.fused = fused

    def forward(self, x):
        if self.fused:
            return F.scaled_dot_product_attention(x * self.weight, x, x)
        return (x @ x.transpose(-2, -1) * self.weight).softmax(-1) @ x


@pytest.mark.parametrize("fused", [False, True])
def test_macs_of_attention(fused):
    heads, tokens, width = 3, 10, 8
    counted = macs_per_image(candidate(Attention(fused), (heads, tokens, width)))
    assert counted == 2 * heads * tokens * tokens * width


def test_macs_of_an_own_operator():
    with torch.library._scoped_library("triptych_test", "FRAGMENT") as library:
        library.define("mix(Tensor x, Tensor w) -> Tensor")
        library.impl("mix", lambda x, w: x @ w, "CPU")

        class Mix(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(6, 7))

            def forward(self, x):
                return torch.ops.triptych_test.mix(x, self.weight)

        target = torch.ops.triptych_test.mix.default
        formulas = {target.overloadpacket: lambda x, w, *_, **__: 2 * x[0] * x[1] * w[1]}
        mixing = candidate(Mix(), (6,), images=2)
        assert macs_per_image(mixing, formulas) == 6 * 7


def test_norm_counts_no_macs():
    assert macs_per_image(candidate(nn.LayerNorm(8), (5, 8))) == 0


def test_saved_by_linear():
    # A linear layer keeps its input (the batch) and its weight; the square keeps its own input.
    model = nn.Linear(8, 16)
    chosen = candidate(model, (8,), loss=lambda m, x: m(x).square().sum())
    assert saved_for_backward(chosen) * BYTES == 16 * 4
    plain = candidate(model, (8,))
    assert saved_for_backward(plain) == 0


def test_saved_by_two_layers():
    # The hidden activations are kept twice, by ReLU and by the second layer: one storage.
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    assert saved_for_backward(candidate(model, (8,))) * BYTES == 32 * 4


def test_saved_by_layer_norm():
    # Mean and reciprocal standard deviation; the input is the batch, the weight a parameter.
    assert saved_for_backward(candidate(nn.LayerNorm(64), (64,))) * BYTES == 2 * 4


def test_view_keeps_its_whole_storage():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x * self.weight)[:, :1].square()

    assert saved_for_backward(candidate(Half(), (100,))) * BYTES == 100 * 4


def test_buffers_and_nested_batches_are_not_counted():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.register_buffer("table", torch.ones(8))

        def forward(self, batch):
            return batch["images"] * self.weight * batch["more"][0] + self.table * self.weight

    chosen = Candidate(
        Weighted(),
        lambda: {"images": torch.rand(2, 8), "more": [torch.rand(2, 8)]},
        2,
        lambda model, batch: model(batch).sum(),
        lambda model, batch: model(batch),
    )
    # Nothing but the batch, the buffer and the weight is needed for the gradient of the weight.
    assert saved_for_backward(chosen) == 0


@pytest.mark.parametrize("images", [1, 3, 8])
def test_saved_is_per_image(images):
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    assert saved_for_backward(candidate(model, (8,), images=images)) * BYTES == 128


def test_checkpointing_keeps_less():
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8), nn.GELU())
    whole = candidate(model, (8,))
    less = candidate(model, (8,), loss=lambda m, x: checkpoint(m, x, use_reentrant=False).sum())
    assert saved_for_backward(less) < saved_for_backward(whole)


def test_bad_candidates():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^images must be at least 1, got 0$"):
        candidate(model, (2,), images=0)
    with pytest.raises(
        ValueError, match=r"^the model has no trainable parameter, so no training step$"
    ):
        candidate(nn.ReLU(), (2,))
