"""DTN as two torch operators, triptych::dtn and triptych::dtn_backward, over the CPU kernel.

Operators, so that autograd, torch.compile and the FLOP counter know them. Low-precision tokens
are computed in float32; for the backward pass only x and the statistics of its tokens are kept.

Shapes: B batch, N tokens that x holds, T tokens of the grid, H heads, C channels, M 1 or B
(visible sets).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triptych.norms.kernels import cpu

_PARAMETERS = (
    "Tensor weight, Tensor bias, Tensor? mean_logit, Tensor variance_logit, Tensor position, "
    "Tensor? visible"
)
_GEOMETRY = "int height, int width, int prefix, bool released, float eps"
_NAMES = ("x", "weight", "bias", "mean_logit", "variance_logit", "position", "visible")

torch.library.define("triptych::dtn", f"(Tensor x, {_PARAMETERS}, {_GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    "triptych::dtn_backward",
    f"(Tensor y_gradient, Tensor statistics, Tensor x, {_PARAMETERS}, {_GEOMETRY}) -> "
    "(Tensor, Tensor, Tensor, Tensor?, Tensor, Tensor)".replace("Tensor?", "Tensor"),
)


def _prepared(values: tuple[Any, ...]) -> tuple[dict[str, Tensor | None], cpu.Geometry]:
    tensors = {
        name: None if value is None else value.contiguous()
        for name, value in zip(_NAMES, values[:7], strict=True)
    }
    for name in _NAMES[:6]:
        value = tensors[name]
        tensors[name] = None if value is None else value.float()
    return tensors, cpu.Geometry(*values[7:])


@torch.library.impl("triptych::dtn", "cpu")
def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    tensors, geometry = _prepared(values)
    y, statistics = cpu.forward(tensors, geometry)
    return y.to(values[0].dtype), statistics


@torch.library.impl("triptych::dtn_backward", "cpu")
def _backward(y_gradient: Tensor, statistics: Tensor, *values: Any) -> tuple[Tensor, ...]:
    tensors, geometry = _prepared(values)
    tensors |= {"y_gradient": y_gradient.float().contiguous(), "statistics": statistics}
    gradients = cpu.backward(tensors, geometry)
    made = (gradient for gradient in gradients if gradient is not None)
    wanted = [value for value in values[:6] if value is not None]
    out = [gradient.to(value.dtype) for gradient, value in zip(made, wanted, strict=True)]
    if values[3] is None:
        out.insert(3, statistics.new_empty(0))
    return tuple(out)


@torch.library.register_fake("triptych::dtn")
def _fake_forward(*values: Any) -> tuple[Tensor, Tensor]:
    x, position, released = values[0], values[5], values[10]
    kept = cpu.statistics_kept(position.shape[0], released)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(*x.shape[:2], kept, dtype=torch.float32)


@torch.library.register_fake("triptych::dtn_backward")
def _fake_backward(_: Tensor, statistics: Tensor, *values: Any) -> tuple[Tensor, ...]:
    return tuple(
        statistics.new_empty(0)
        if value is None
        else torch.empty_like(value, memory_format=torch.contiguous_format)
        for value in values[:6]
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:7])
    ctx.geometry = inputs[7:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, y_gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if y_gradient is None:
        return (None,) * 12
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused DynamicTokenNorm has no second derivative; DynamicTokenNorm.reference has, "
            "and so has a float64 module"
        )
    statistics, *tensors = ctx.saved_tensors
    backward = torch.ops.triptych.dtn_backward
    gradients = list(backward(y_gradient, statistics, *tensors, *ctx.geometry))
    if tensors[3] is None:
        gradients[3] = None
    return (*gradients, *[None] * 6)


class _Normalize(torch.autograd.Function):
    """The operator with less around it: for small x torch's own way to differentiate one costs more
    than the norm. Compiled graphs have the operator itself.
    """

    @staticmethod
    def forward(ctx: Any, *values: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.triptych.dtn(*values)
        _keep(ctx, values, output)
        return output

    backward = staticmethod(_differentiate)


torch.library.register_autograd("triptych::dtn", _differentiate, setup_context=_keep)


def normalize(
    x: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    visible: Tensor | None,
    geometry: cpu.Geometry,
) -> Tensor:
    """DTN of x (B, N, C) by the fused kernel, in x's dtype.

    Args:
        x: tokens, prefix first.
        parameters: weight, bias (C), logits (H) of the mean's ratio (None: 1) and of the
            variance's, position weights (H, 3).
        visible: bool (M, T) or None, as in :meth:`DynamicTokenNorm.forward`.
        geometry: grid, prefix tokens, form and eps.
    """
    g = geometry
    values = (x, *parameters, visible, g.height, g.width, g.prefix, g.released, g.eps)
    if torch.compiler.is_compiling():
        return torch.ops.triptych.dtn(*values)[0]
    return _Normalize.apply(*values)[0]


@register_flop_formula(torch.ops.triptych.dtn)
def _flops(x_shape: Any, *rest: Any, **_: Any) -> int:
    """Two moments of every channel, summed along both axes: 2 FLOPs a multiply-add."""
    height, width = rest[6:8]
    return 2 * x_shape[0] * height * width * x_shape[2] * 2 * (height + width)
