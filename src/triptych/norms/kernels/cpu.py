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
Inputs = tuple[Tensor | None, ...]
_LOG = logging.getLogger("triptych.norms")
_INPUTS = ("x", "weight", "bias", "mean_logit", "variance_logit", "position")
_POINTERS = (
    *_INPUTS,
    *("visible", "y", "statistics", "y_gradient", "x_gradient", "weight_gradient"),
    *("bias_gradient", "mean_gradient", "variance_gradient", "position_gradient"),
)
_STRIDES = ("x_sample", "x_token", "x_channel")
_INTEGERS = (
    *("batch", "tokens", "prefix", "height", "width", "heads", "features", "sets", "packed"),
    *("rms", "unbiased", "threads"),
)


class Problem(ctypes.Structure):
    """The arguments of the C functions; the twin of the struct in dtn_problem.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_long) for name in _STRIDES),
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


def forward(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """y (B, N, C) and the statistics of the tokens (B, N, S).

    Args:
        inputs: x, weight, bias, mean_logit (or None), variance_logit, position and visible (or
            None): float32 and contiguous, but of x either the channels or the tokens need lie
            side by side and no more; ``visible`` bool (M, T).
        geometry: the rest.
    """
    x, position = inputs[0], inputs[5]
    assert x is not None
    assert position is not None
    kept = statistics_kept(position.shape[0], geometry.released)
    y, statistics = x.new_empty(x.shape), x.new_empty((*x.shape[:2], kept))
    _call("dtn_forward", _problem((*inputs, y, statistics), position.shape[0], geometry, x))
    return y, statistics


def backward(
    inputs: Inputs, statistics: Tensor, y_gradient: Tensor, geometry: Geometry
) -> list[Tensor | None]:
    """Gradients of x, weight, bias, mean_logit, variance_logit and position.

    ``inputs`` are those of :func:`forward`; the other two are float32 and contiguous.
    """
    x, position = inputs[0], inputs[5]
    assert x is not None
    assert position is not None
    made = [None if value is None else value.new_empty(value.shape) for value in inputs[:6]]
    tensors = (*inputs, None, statistics, y_gradient, *made)
    _call("dtn_backward", _problem(tensors, position.shape[0], geometry, x))
    return made


def own_share(position: Tensor, height: int, width: int) -> float:
    """The least share of its own neighbourhood that a token holds, over all heads."""
    position = position.detach().float().contiguous()
    # Of ``visible`` only whether there is one counts here.
    inputs = (None, None, None, None, None, position, position)
    problem = _problem(inputs, len(position), Geometry(height, width, 0, True, 0.0))
    share = _library().dtn_own_share(ctypes.byref(problem))
    if share < 0:
        raise MemoryError("no memory for the position kernels of DynamicTokenNorm")
    return share


def _problem(
    tensors: tuple[Tensor | None, ...], heads: int, geometry: Geometry, x: Tensor | None = None
) -> Problem:
    """The arguments for C; ``tensors`` in the order of the struct, as many as are needed."""
    batch, tokens, channels = (0, 0, 0) if x is None else x.shape
    visible, g = tensors[6], geometry
    pointers = [None if value is None else value.data_ptr() for value in tensors]
    return Problem(
        *pointers,
        *[None] * (len(_POINTERS) - len(pointers)),
        *((0, 0, 0) if x is None else x.stride()),
        *(batch, tokens, g.prefix, g.height, g.width, heads, channels // heads),
        0 if visible is None else len(visible),
        visible is not None and tokens != g.prefix + g.height * g.width,
        *(g.released, g.released, torch.get_num_threads(), g.eps),
    )


def _library() -> ctypes.CDLL:
    library, status = _load()
    if library is None:
        raise KernelUnavailableError(str(status))
    return library


def _call(name: str, problem: Problem) -> None:
    if getattr(_library(), name)(ctypes.byref(problem)):
        raise MemoryError("no memory for the work space of DynamicTokenNorm")
