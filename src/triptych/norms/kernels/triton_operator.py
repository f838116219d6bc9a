"""DTN's operators on CUDA: registered here, compiled by Triton at the first call.

This module imports without Triton and without a GPU.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from triptych.norms.kernels.cpu import Geometry

# The kernels of an axis are whole matrices in registers.
LONGEST_SIDE = 64
# Tensor cores that take tf32.
LEAST_CAPABILITY = (8, 0)
_LOG = logging.getLogger("triptych.norms")
_NAMES = ("x", "weight", "bias", "mean_logit", "variance_logit", "position", "visible")


@cache
def cuda_obstacle() -> str | None:
    """Why DTN takes torch operators on CUDA; None where the Triton kernels serve.

    The first call that finds an obstacle says so in one sentence through ``logging``.
    """
    obstacle = _find_obstacle()
    if obstacle is not None:
        _LOG.warning(
            "DynamicTokenNorm on CUDA uses torch operators, which are slower: %s", obstacle
        )
    return obstacle


def _find_obstacle() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA devices, and this torch is built for ROCm"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < LEAST_CAPABILITY:
            return (
                f"device {index} has compute capability {capability[0]}.{capability[1]}, and the "
                f"kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
            )
    return None


def _prepared(values: tuple[Any, ...]) -> tuple[dict[str, Tensor | None], Geometry]:
    tensors = {
        name: None if value is None else value.contiguous()
        for name, value in zip(_NAMES, values[:7], strict=True)
    }
    return tensors, Geometry(*values[7:])


@torch.library.impl("triptych::dtn", "cuda")
def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    from triptych.norms.kernels import triton_launch

    return triton_launch.forward(*_prepared(values))


@torch.library.impl("triptych::dtn_backward", "cuda")
def _backward(y_gradient: Tensor, statistics: Tensor, *values: Any) -> tuple[Tensor, ...]:
    from triptych.norms.kernels import triton_launch

    tensors, geometry = _prepared(values)
    tensors |= {"y_gradient": y_gradient.contiguous(), "statistics": statistics}
    gradients = triton_launch.backward(tensors, geometry)
    return tuple(
        statistics.new_empty(0) if gradient is None else gradient for gradient in gradients
    )
