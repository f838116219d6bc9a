"""DTN as two torch operators, triptych::dtn and triptych::dtn_backward; here over the CPU kernel.

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

from triptych.norms.kernels import cpu, triton_operator

_PARAMETERS = (
    "Tensor weight, Tensor bias, Tensor? mean_logit, Tensor variance_logit, Tensor position, "
    "Tensor? visible"
)
_GEOMETRY = "int height, int width, int prefix, bool released, float eps"

torch.library.define("triptych::dtn", f"(Tensor x, {_PARAMETERS}, {_GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    "triptych::dtn_backward",
    f"(Tensor y_gradient, Tensor statistics, Tensor x, {_PARAMETERS}, {_GEOMETRY}) -> "
    "(Tensor, Tensor, Tensor, Tensor?, Tensor, Tensor)".replace("Tensor?", "Tensor"),
)


def _plain(value: Tensor | None) -> Tensor | None:
    """As the kernel reads it: float32 (bool if it is that), contiguous."""
    if value is None or (value.dtype is torch.float32 and value.is_contiguous()):
        return value
    return value.contiguous() if value.dtype is torch.bool else value.float().contiguous()


def _plain_tokens(x: Tensor) -> Tensor:
    """``x`` in float32 with channels or tokens side by side; either way the kernel can read."""
    return x.float() if 1 in x.stride()[1:] else x.float().contiguous()


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    x = values[0]
    inputs = (_plain_tokens(x), *map(_plain, values[1:7]))
    y, statistics = cpu.forward(inputs, cpu.Geometry(*values[7:]))
    return y.to(x.dtype), statistics


def _backward(y_gradient: Tensor, statistics: Tensor, *values: Any) -> tuple[Tensor, ...]:
    inputs = (_plain_tokens(values[0]), *map(_plain, values[1:7]))
    upstream = y_gradient.float().contiguous()
    made = cpu.backward(inputs, statistics, upstream, cpu.Geometry(*values[7:]))
    return tuple(
        statistics.new_empty(0) if gradient is None else gradient.to(value.dtype)
        for gradient, value in zip(made, values[:6], strict=True)
    )


torch.library.impl("triptych::dtn", "cpu", _forward)
torch.library.impl("triptych::dtn_backward", "cpu", _backward)


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
    operator = torch.ops.triptych.dtn_backward
    backward = _backward if _is_unobserved(y_gradient) else operator
    gradients = list(backward(y_gradient, statistics, *tensors, *ctx.geometry))
    if tensors[3] is None:
        gradients[3] = None
    return (*gradients, *[None] * 6)


def _is_unobserved(x: Tensor) -> bool:
    """Whether the operator may be stepped over: on the CPU, and no mode counts or traces it."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.autograd._profiler_enabled()
    )


class _Normalize(torch.autograd.Function):
    """The operator with less around it: for small x torch's own way to differentiate one costs more
    than the norm. Compiled graphs have the operator itself.
    """

    @staticmethod
    def forward(ctx: Any, *values: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            operator = _forward if _is_unobserved(values[0]) else torch.ops.triptych.dtn
            output = operator(*values)
        _keep(ctx, values, output)
        return output

    backward = staticmethod(_differentiate)


torch.library.register_autograd("triptych::dtn", _differentiate, setup_context=_keep)


def longest_side(device_type: str) -> int:
    """The longest side of a grid that a fused kernel takes on such devices; 0 without a kernel."""
    if device_type == "cpu" and cpu.kernel_status().fused:
        return cpu.LONGEST_SIDE
    if device_type == "cuda" and triton_operator.cuda_obstacle() is None:
        return triton_operator.LONGEST_SIDE
    return 0


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
