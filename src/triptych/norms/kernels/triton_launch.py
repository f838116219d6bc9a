"""DTN on the device: memory and launches. Nothing here waits for the device.

Shapes: B batch, N tokens that x holds, T tokens of the grid, H heads, D channels a head, C = H·D,
M 1 or B (visible sets), K blocks of a head's channels, S statistics kept of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from triptych.norms.kernels.cpu import Geometry
from triptych.norms.kernels.triton_backward import backward_kernel
from triptych.norms.kernels.triton_forward import forward_kernel
from triptych.norms.kernels.triton_plan import Plan, make_plan
from triptych.norms.kernels.triton_sums import CHANNELS_AT_ONCE, sums_kernel
from triptych.norms.kernels.triton_tokens import finish_kernel, statistics_kernel

# Programs a multiprocessor holds at once; each takes tile after tile, in scratch of its own.
_RESIDENT = 4
_PARAMETER_NAMES = ("weight", "bias", "mean_logit", "variance_logit", "position")


@dataclass(frozen=True)
class Launch:
    """What both passes need besides their tensors."""

    plan: Plan
    batch: int
    tokens: int
    programs: int
    slot: Tensor
    slot_stride: int

    @property
    def tiles(self) -> int:
        return self.batch * self.plan.parts


def forward(tensors: dict[str, Tensor | None], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """y (B, N, C) like x, and the statistics of the tokens (B, N, S).

    Args:
        tensors: x, weight, bias, mean_logit (or None), variance_logit, position, visible (or
            None), contiguous, of any floating dtype, ``visible`` bool (M, T).
        geometry: the rest.
    """
    x = _given(tensors, "x")
    launch = _launch(tensors, geometry)
    plan = launch.plan
    y = torch.zeros_like(x) if plan.hidden else torch.empty_like(x)
    statistics = x.new_empty(*x.shape[:2], plan.kept, dtype=torch.float32)
    if x.numel() == 0:
        return y, statistics
    count = launch.batch * launch.tokens
    with _on(x):
        statistics_kernel[(triton.cdiv(count, plan.group),)](x, statistics, count, plan)
        forward_kernel[(launch.programs,)](
            *(x, *_parameters(tensors), launch.slot, statistics, y, _scratch(x, launch)),
            *(launch.tiles, launch.tokens, launch.slot_stride, plan),
            num_warps=plan.warps,
            num_stages=1,
        )
    return y, statistics


def backward(
    tensors: dict[str, Tensor | None], geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, weight, bias, mean_logit, variance_logit and position, each like these.

    ``tensors`` are those of :func:`forward` with statistics and y_gradient. No two programs add to
    one number, so the same call gives the same bits.
    """
    x, statistics = _given(tensors, "x"), _given(tensors, "statistics")
    launch = _launch(tensors, geometry)
    plan, batch, tokens = launch.plan, launch.batch, launch.tokens
    x_gradient = torch.empty_like(x)
    is_float = x.dtype == torch.float32
    u_gradient = x_gradient if is_float else torch.empty_like(x, dtype=torch.float32)
    sums = statistics.new_empty(batch, tokens, plan.parts, 2)
    channel_slopes = statistics.new_empty(batch, 2, plan.channels)
    scalar_slopes = statistics.new_empty(batch, plan.parts, 5)
    parameters = _parameters(tensors)
    gradients = [torch.empty_like(value) for value in parameters]
    at_token, numbers = (launch.slot, statistics), (launch.tokens, launch.slot_stride, plan)
    with _on(x):
        if x.numel():
            backward_kernel[(launch.programs,)](
                *(x, parameters[0], *parameters[2:], *at_token, _given(tensors, "y_gradient")),
                *(u_gradient, sums, channel_slopes, scalar_slopes, _scratch(x, launch)),
                *(launch.tiles, *numbers),
                num_warps=plan.warps,
                num_stages=1,
            )
            finish_kernel[(triton.cdiv(batch * tokens, plan.group),)](
                x, *at_token, u_gradient, sums, x_gradient, batch * tokens, *numbers
            )
        sums_kernel[(triton.cdiv(plan.channels, CHANNELS_AT_ONCE.value) + plan.heads,)](
            channel_slopes, scalar_slopes, *gradients, batch, plan
        )
    weight, bias, mean, variance, position = gradients
    return x_gradient, weight, bias, mean if plan.mixed else None, variance, position


def _given(tensors: dict[str, Tensor | None], name: str) -> Tensor:
    value = tensors[name]
    assert value is not None
    return value


def _parameters(tensors: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """Where there is no logit of the mean, the kernels never read what stands in its place."""
    stand_in = _given(tensors, "variance_logit")
    return tuple(
        stand_in if value is None else value for value in map(tensors.get, _PARAMETER_NAMES)
    )


def _launch(tensors: dict[str, Tensor | None], geometry: Geometry) -> Launch:
    x, visible = _given(tensors, "x"), tensors["visible"]
    batch, tokens, channels = x.shape
    heads = len(_given(tensors, "position"))
    packed = tokens != geometry.prefix + geometry.height * geometry.width
    plan = make_plan(
        geometry,
        heads=heads,
        features=channels // heads,
        mixed=tensors["mean_logit"] is not None,
        masked=visible is not None,
        hidden=visible is not None and not packed,
    )
    programs = min(batch * plan.parts, _most_programs(x.device))
    if visible is None:
        return Launch(plan, batch, tokens, programs, x, 0)
    stride = visible.shape[1] if len(visible) > 1 else 0
    return Launch(plan, batch, tokens, programs, slots(visible, packed), stride)


def slots(visible_MT: Tensor, packed: bool) -> Tensor:
    """For each place of the grid the number of its token, (M, T) int32; -1 where none is."""
    number = visible_MT.cumsum(1, dtype=torch.int32) - 1
    if not packed:
        number = torch.arange(visible_MT.shape[1], device=visible_MT.device, dtype=torch.int32)
    return torch.where(visible_MT, number, -1)


@cache
def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter: few, so that each takes several tiles
        return _RESIDENT
    return _RESIDENT * torch.cuda.get_device_properties(device).multi_processor_count


def _scratch(x: Tensor, launch: Launch) -> Tensor:
    return x.new_empty(launch.programs * launch.plan.scratch, dtype=torch.float32)


def _on(x: Tensor) -> torch.cuda.device:
    """Triton launches on the current device, which need not be x's."""
    return torch.cuda.device(x.device if x.device.type == "cuda" else -1)
