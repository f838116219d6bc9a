"""Layers that keep less, and attention with its backward by hand: same values and gradients."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from triptych.mim.recompute import norm_linear, norm_mlp
from triptych.mim.row_attention import row_attention


def parts(dtype=torch.float64, bias=True, drop=0.0, act=nn.GELU):
    torch.manual_seed(0)
    norm, mlp = nn.LayerNorm(8), Mlp(8, 24, bias=bias, drop=drop, act_layer=act)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype), mlp.to(dtype)


def outcome(call, modules, x):
    """Value, gradient of x and of the parameters of ``modules``."""
    for module in modules:
        module.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weight).sum().backward()
    gradients = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *gradients]


def kept_bytes(call, modules, x):
    """Bytes of the storages that autograd keeps, but for parameters and x."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(x.requires_grad_())
    for tensor in [x, *(p for module in modules for p in module.parameters())]:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del y
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bias", [True, False])
def test_same_values_and_gradients(bias):
    norm, mlp = parts(bias=bias)
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for lean, plain, modules in (
        (lambda x: norm_linear(norm, mlp.fc1, x), lambda x: mlp.fc1(norm(x)), (norm, mlp.fc1)),
        (lambda x: norm_mlp(norm, mlp, x), lambda x: mlp(norm(x)), (norm, mlp)),
    ):
        pairs = zip(outcome(lean, modules, x), outcome(plain, modules, x), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_keeps_no_more_than_the_first_layer_gives():
    norm, mlp = parts(torch.float32)
    x = torch.randn(64, 8)
    lean = kept_bytes(lambda x: norm_mlp(norm, mlp, x), (norm, mlp), x)
    plain = kept_bytes(lambda x: mlp(norm(x)), (norm, mlp), x)
    assert lean == 64 * 24 * 4
    assert plain >= 64 * (24 + 24 + 8) * 4


def test_bfloat16_autocast_as_the_layers_themselves():
    norm, mlp = parts(torch.float32)
    x = torch.randn(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours = outcome(lambda x: norm_mlp(norm, mlp, x), (norm, mlp), x)
        theirs = outcome(lambda x: mlp(norm(x)), (norm, mlp), x)
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(own, other, atol=0.05, rtol=0.05)


def test_other_modules_are_left_to_themselves():
    norm, mlp = parts()
    x = torch.randn(2, 8, dtype=torch.float64)
    assert norm_linear(nn.Identity(), mlp.fc1, x) is None
    assert norm_linear(norm, nn.Identity(), x) is None
    assert norm_mlp(norm, parts(act=nn.ReLU)[1], x) is None
    assert norm_mlp(norm, parts(drop=0.5)[1], x) is None
    assert norm_mlp(norm, parts(drop=0.5)[1].eval(), x) is not None
    handle = mlp.fc1.register_forward_hook(lambda *call: None)
    assert norm_mlp(norm, mlp, x) is None
    handle.remove()
    assert norm_mlp(norm, mlp, x) is not None


@pytest.mark.parametrize("samples", [1, 3])
def test_row_attention_is_softmax_with_a_bias_from_the_table(samples):
    rows, slots, heads, depth, table_rows = 2, 4, 3, 5, 7
    generator = torch.Generator().manual_seed(0)
    shape = samples, rows * slots, 3 * heads * depth
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(table_rows, heads, generator=generator, dtype=torch.float64)
    table.requires_grad_()
    pairs = torch.randint(table_rows + 1, (rows, slots, slots), generator=generator)
    pairs.diagonal(dim1=1, dim2=2).clamp_(max=table_rows - 1)

    def naive():
        barred = torch.full((1, heads), -torch.inf, dtype=torch.float64)
        bias = torch.cat((table, barred))[pairs].permute(0, 3, 1, 2)
        q, k, v = qkv.view(samples, rows, slots, 3, heads, depth).permute(3, 0, 1, 4, 2, 5)
        out = F.softmax(q @ k.mT * 0.3 + bias, -1) @ v
        return out.transpose(2, 3).reshape(samples, rows * slots, -1)

    ours, theirs = row_attention(qkv, table, pairs, 0.3), naive()
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    own = torch.autograd.grad((ours * weight).sum(), (qkv, table))
    other = torch.autograd.grad((theirs * weight).sum(), (qkv, table))
    for gradient, expected in zip(own, other, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
