"""Halves of a transformer block that keep less for the backward pass.

Autograd keeps what each layer was given: the output of a norm for the linear layer behind it, the
output of the activation for the second layer of an MLP. Both are made anew from their own input
by one pass over memory, so only that input is kept here: in a block of width C with an MLP four
times as wide, 6 of the 16 C values of each token less.

Shapes: (..., C) tokens, F features of a linear layer, E channels of its input.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)


class _NormLinear(torch.autograd.Function):
    """LayerNorm, then a linear layer; keeps the input of the norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Any, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps, ctx.has_bias = eps, bias is not None
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        return F.linear(y.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight = ctx.saved_tensors
        shape = x.shape[-1:]
        grad_MF = grads[0].reshape(-1, len(weight))
        y, mean, rstd = torch.native_layer_norm(x, shape, scale, shift, ctx.eps)
        grad_weight = grad_MF.T @ y.to(weight.dtype).reshape(-1, weight.shape[1])
        del y
        grad_y = (grad_MF @ weight).to(x.dtype).view(x.shape)
        grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
            grad_y, x, shape, mean, rstd, scale, shift, [True, True, True]
        )
        grad_bias = grad_MF.sum(0) if ctx.has_bias else None
        return grad_x, grad_scale, grad_shift, grad_weight, grad_bias, None


class _GeluLinear(torch.autograd.Function):
    """GELU, then a linear layer; keeps the input of the GELU."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Any, approximate: str) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.approximate, ctx.has_bias = approximate, bias is not None
        return F.linear(F.gelu(h, approximate=approximate), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        grad_MF = grads[0].reshape(-1, len(weight))
        h_ME = h.reshape(-1, weight.shape[1])
        grad_weight = grad_MF.T @ F.gelu(h_ME, approximate=ctx.approximate)
        grad_h = grad_MF @ weight
        backward = torch.ops.aten.gelu_backward
        # In place: a second tensor of this size would cost more time than the arithmetic.
        backward.grad_input(grad_h, h_ME, approximate=ctx.approximate, grad_input=grad_h)
        grad_bias = grad_MF.sum(0) if ctx.has_bias else None
        return grad_h.view(h.shape), grad_weight, grad_bias, None


def norm_linear(norm: nn.Module, linear: nn.Module, x: Tensor) -> Tensor | None:
    """``linear(norm(x))``, or None where the two are not a plain LayerNorm and a plain Linear."""
    if not (_is_plain(norm, nn.LayerNorm) and _is_plain(linear, nn.Linear)):
        return None
    if norm.weight is None or norm.bias is None or norm.weight.shape != x.shape[-1:]:
        return None
    kind = _autocast_type(x)
    if kind is None:
        return _NormLinear.apply(x, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps)
    weight, bias = _in_type(kind, linear)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(norm.weight.dtype)
        return _NormLinear.apply(x, norm.weight, norm.bias, weight, bias, norm.eps)


def norm_mlp(norm: nn.Module, mlp: nn.Module, x: Tensor) -> Tensor | None:
    """``mlp(norm(x))``, or None where the MLP is not timm's plain one with GELU."""
    if not _is_plain(mlp, Mlp):
        return None
    parts: Any = mlp  # whose attributes are not typed
    if not (_is_plain(parts.act, nn.GELU) and _is_plain(parts.fc2, nn.Linear)):
        return None
    drops = (parts.drop1, parts.drop2)
    if not isinstance(parts.norm, nn.Identity) or any(d.p > 0 and d.training for d in drops):
        return None
    h = norm_linear(norm, parts.fc1, x)
    if h is None:
        return None
    kind, approximate = _autocast_type(x), parts.act.approximate
    if kind is None:
        return _GeluLinear.apply(h, parts.fc2.weight, parts.fc2.bias, approximate)
    weight, bias = _in_type(kind, parts.fc2)
    with torch.autocast(x.device.type, enabled=False):
        return _GeluLinear.apply(h, weight, bias, approximate)


def _is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Of this very kind, and not watched by hooks, which only its own call would serve."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def _autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast, if it is on, multiplies in."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _in_type(kind: torch.dtype, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight.to(kind), None if linear.bias is None else linear.bias.to(kind)
