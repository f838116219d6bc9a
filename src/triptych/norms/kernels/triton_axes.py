"""Position kernels of one axis on the device, and their gradients; all [source, target].

With hidden tokens the sums run first within each row, then over rows weighted by what the row's
visible tokens weigh. Either step is a softmax over visible sources alone, so nothing underflows
and no value has to be looked at before the launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Score of an absent source: finite, so that a row without any visible token gives 0 and not NaN.
ABSENT = tl.constexpr(-1e30)


@triton.jit
def scores(linear, square, source, target):
    """linear·δ + square·δ², δ = target - source."""
    offset = (target - source).to(tl.float32)
    return linear * offset + square * offset * offset


@triton.jit
def softmax_over_sources(score):
    weight = tl.exp(score - tl.max(score, 0)[None, :])
    return weight / tl.sum(weight, 0)[None, :]


@triton.jit
def full_kernel(linear, square, SIDE: tl.constexpr, PADDED: tl.constexpr):
    """The kernel of an axis whose tokens are all there; 0 beyond its side."""
    source = tl.arange(0, PADDED)[:, None]
    target = tl.arange(0, PADDED)[None, :]
    score = tl.where(source < SIDE, scores(linear, square, source, target), ABSENT)
    return tl.where(target < SIDE, softmax_over_sources(score), 0.0)


@triton.jit
def row_kernel(slot, row, along_x, square, PLAN: tl.constexpr):
    """The kernel along x within one row, over its visible tokens."""
    source = tl.arange(0, PLAN.padded_x)
    held = tl.load(slot + row * PLAN.width + source, mask=source < PLAN.width, other=-1) >= 0
    score = scores(along_x, square, source[:, None], source[None, :])
    return softmax_over_sources(tl.where(held[:, None], score, ABSENT))


@triton.jit
def column_kernel(slot, column, along_x, along_y, square, PLAN: tl.constexpr):
    """The kernel over rows for the targets of one column: row by row what its tokens weigh."""
    y = tl.arange(0, PLAN.padded_y)
    x = tl.arange(0, PLAN.padded_x)
    inside = (y[:, None] < PLAN.height) & (x[None, :] < PLAN.width)
    place = y[:, None] * PLAN.width + x[None, :]
    held = tl.load(slot + place, mask=inside, other=-1) >= 0
    score = tl.where(held, scores(along_x, square, x, column)[None, :], ABSENT)
    most = tl.max(score, 1)
    row_weight = most + tl.log(tl.sum(tl.exp(score - most[:, None]), 1))
    along = scores(along_y, square, y[:, None], y[None, :])
    return softmax_over_sources(along + row_weight[:, None])


@triton.jit
def score_slopes(kernel, slope):
    """Gradient of the scores from that of the kernel, through the softmax."""
    return kernel * (slope - tl.sum(kernel * slope, 0)[None, :])


@triton.jit
def weight_slopes(slope, PADDED: tl.constexpr):
    """Gradients of the linear and the square weight from that of the scores."""
    position = tl.arange(0, PADDED)
    offset = (position[None, :] - position[:, None]).to(tl.float32)
    return tl.sum(tl.sum(slope * offset, 1), 0), tl.sum(tl.sum(slope * offset * offset, 1), 0)
