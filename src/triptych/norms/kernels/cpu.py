"""The C kernel, called through ctypes: float32, in the memory that torch allocated.

Shapes: B batch, N tokens that x holds, T tokens of the grid, H heads, C channels, M 1 or B
(visible sets), S statistics kept of a token.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from triptych.norms.kernels.build import KernelUnavailableError, build

# The kernels of an axis are whole matrices, and their gradients are gathered entry by entry.
LONGEST_SIDE = 256
_LOG = logging.getLogger("triptych.norms")
_INPUTS = ("x", "weight", "bias", "mean_logit", "variance_logit", "position")
_POINTERS = (
    *_INPUTS,
    *("visible", "y", "statistics", "y_gradient", "x_gradient", "weight_gradient"),
    *("bias_gradient", "mean_gradient", "variance_gradient", "position_gradient"),
)
_INTEGERS = (
    *("batch", "tokens", "prefix", "height", "width", "heads", "features", "sets", "packed"),
    *("rms", "unbiased", "threads"),
)


class Problem(ctypes.Structure):
    """The arguments of the C functions; the twin of the struct in dtn_problem.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _INTEGERS),
        ("eps", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Geometry:
    """What a call depends on besides its tensors."""

    height: int
    width: int
    prefix: int
    released: bool
    eps: float


@dataclass(frozen=True)
class KernelStatus:
    """Which way DTN takes on the CPU in float32, and why; ``str`` gives the sentence."""

    fused: bool
    reason: str

    def __str__(self) -> str:
        way = "the fused C kernel" if self.fused else "torch operators, which are slower"
        return f"DynamicTokenNorm on the CPU uses {way}: {self.reason}"


def kernel_status() -> KernelStatus:
    """Whether the fused kernel serves the CPU; builds and loads it when first asked.

    Where it does not, the first call says so in one sentence through ``logging``.
    """
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, KernelStatus]:
    try:
        path = build()
        library = ctypes.CDLL(str(path))
    except (KernelUnavailableError, OSError) as error:
        status = KernelStatus(False, str(error))
        _LOG.warning("%s", status)
        return None, status
    for function in (library.dtn_forward, library.dtn_backward, library.dtn_own_share):
        function.argtypes = [ctypes.POINTER(Problem)]
        function.restype = ctypes.c_int
    library.dtn_own_share.restype = ctypes.c_float
    return library, KernelStatus(True, f"compiled as {path}")


def statistics_kept(heads: int, released: bool) -> int:
    """Floats kept of a token: mean, variance and, in the released form, one factor a head."""
    return 2 + (heads if released else 0)


def forward(tensors: dict[str, Tensor | None], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """y (B, N, C) and the statistics of the tokens (B, N, S).

    Args:
        tensors: x, weight, bias, mean_logit (or None), variance_logit, position, visible (or
            None), all float32 and contiguous, ``visible`` bool (M, T).
        geometry: the rest.
    """
    x = tensors["x"]
    assert x is not None
    heads = _heads(tensors)
    y = torch.empty_like(x)
    statistics = x.new_empty(*x.shape[:2], statistics_kept(heads, geometry.released))
    _call("dtn_forward", _problem(tensors | {"y": y, "statistics": statistics}, geometry))
    return y, statistics


def backward(
    tensors: dict[str, Tensor | None], geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, weight, bias, mean_logit, variance_logit and position.

    ``tensors`` are those of :func:`forward` with statistics and y_gradient.
    """
    made: dict[str, Tensor | None] = {}
    for name in _INPUTS:
        value = tensors[name]
        like = None if value is None else torch.empty_like(value)
        made[name.removesuffix("_logit") + "_gradient"] = like
    _call("dtn_backward", _problem(tensors | made, geometry))
    return tuple(made.values())  # type: ignore[return-value]


def own_share(position: Tensor, height: int, width: int) -> float:
    """The least share of its own neighbourhood that a token holds, over all heads."""
    library = _library()
    tensors: dict[str, Tensor | None] = {
        "position": position.detach().float().contiguous(),
        "visible": position,  # only whether there is one counts here
    }
    problem = _problem(tensors, Geometry(height, width, 0, True, 0.0))
    problem.heads = len(position)
    share = library.dtn_own_share(ctypes.byref(problem))
    if share < 0:
        raise MemoryError("no memory for the position kernels of DynamicTokenNorm")
    return share


def _heads(tensors: dict[str, Tensor | None]) -> int:
    position = tensors["position"]
    assert position is not None
    return len(position)


def _problem(tensors: dict[str, Tensor | None], geometry: Geometry) -> Problem:
    problem = Problem(
        height=geometry.height,
        width=geometry.width,
        prefix=geometry.prefix,
        rms=geometry.released,
        unbiased=geometry.released,
        eps=geometry.eps,
        heads=_heads(tensors),
        threads=torch.get_num_threads(),
    )
    for name, value in tensors.items():
        if value is not None:
            setattr(problem, name, value.data_ptr())
    x, visible = tensors.get("x"), tensors.get("visible")
    if x is not None:
        problem.batch, problem.tokens, channels = x.shape
        problem.features = channels // problem.heads
        if visible is not None:
            problem.sets = len(visible)
            problem.packed = x.shape[1] != geometry.prefix + geometry.height * geometry.width
    return problem


def _library() -> ctypes.CDLL:
    library, status = _load()
    if library is None:
        raise KernelUnavailableError(str(status))
    return library


def _call(name: str, problem: Problem) -> None:
    if getattr(_library(), name)(ctypes.byref(problem)):
        raise MemoryError("no memory for the work space of DynamicTokenNorm")
