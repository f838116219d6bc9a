"""DTN's forward pass on the device, once its tokens' statistics are known."""

from __future__ import annotations

import triton
import triton.language as tl

from triptych.norms.kernels.triton_axes import column_kernel, full_kernel
from triptych.norms.kernels.triton_tile import (
    channel_means,
    column_chunk,
    load_own,
    load_parameters,
    load_prepared,
    locate_tile,
    normalized,
    product,
    smooth_rows,
)


@triton.jit
def normalize_prefix(x, own, y, gain, shift, head, block, PLAN: tl.constexpr):
    """y of the tokens before the grid, from their own statistics."""
    channel = tl.arange(0, PLAN.block)
    exists = channel < PLAN.features - block * PLAN.block
    for token in range(-PLAN.prefix, 0):
        u = load_prepared(x, own, token, True, head, block, PLAN)
        mean, variance = load_own(own, token, True, PLAN)
        out = (u - mean) / tl.sqrt(variance + PLAN.eps) * gain + shift
        at = y + token * PLAN.channels + channel
        tl.store(at, out.to(y.dtype.element_ty), mask=exists)


@triton.jit
def normalize_columns(
    x, own, slot, y, scratch, centre, gain, shift, ratios, weights, head, block, PLAN: tl.constexpr
):
    """Sums the scratch along y, and from both moments writes y."""
    mean_ratio, variance_ratio = ratios
    along_x, along_y, square = weights
    kernel = full_kernel(along_y, square, PLAN.height, PLAN.padded_y)
    squares = scratch + PLAN.height * PLAN.width * PLAN.block
    channel = tl.arange(0, PLAN.block)[None, None, :]
    for first in range(0, PLAN.width, PLAN.columns):
        token, there, place, inside = column_chunk(slot, first, PLAN)
        if PLAN.masked:
            kernel = column_kernel(slot, first, along_x, along_y, square, PLAN)
        over = tl.trans(kernel)
        mean = product(over, tl.load(scratch + place, mask=inside, other=0.0), PLAN)
        mean_square = product(over, tl.load(squares + place, mask=inside, other=0.0), PLAN)
        u = load_prepared(x, own, token, there, head, block, PLAN) - centre[None, None, :]
        own_mean, own_variance = load_own(own, token, there, PLAN)
        gap = own_mean - centre[None, None, :] - mean
        z, _, _ = normalized(
            u, mean, mean_square, gap, own_variance, mean_ratio, variance_ratio, PLAN.eps
        )
        out = (z * gain[None, None, :] + shift[None, None, :]).to(y.dtype.element_ty)
        exists = there & (channel < PLAN.features - block * PLAN.block)
        tl.store(y + token * PLAN.channels + channel, out, mask=exists)


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    mean_logit,
    variance_logit,
    position,
    slot,
    statistics,
    y,
    scratch,
    tiles,
    tokens,
    slot_stride,
    PLAN: tl.constexpr,
):
    """y of the tiles that fall to this program, one after the other."""
    scratch += tl.program_id(0).to(tl.int64) * PLAN.scratch
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        sample, head, block, begin, own_begin = locate_tile(tile, tokens, PLAN)
        gain, mean_ratio, variance_ratio, along_x, along_y, square = load_parameters(
            weight, mean_logit, variance_logit, position, head, block, PLAN
        )
        channel = block * PLAN.block + tl.arange(0, PLAN.block)
        at = bias + head * PLAN.features + channel
        shift = tl.load(at, mask=channel < PLAN.features, other=0.0).to(tl.float32)
        own, held = statistics + own_begin, slot + sample * slot_stride
        if PLAN.prefix > 0:
            normalize_prefix(x + begin, own, y + begin, gain, shift, head, block, PLAN)
        centre = channel_means(x + begin, own, held, head, block, PLAN)
        smooth_rows(x + begin, own, held, scratch, centre, along_x, square, head, block, PLAN)
        tl.debug_barrier()
        ratios, weights = (mean_ratio, variance_ratio), (along_x, along_y, square)
        normalize_columns(
            *(x + begin, own, held, y + begin, scratch, centre, gain, shift),
            *(ratios, weights, head, block, PLAN),
        )
        tl.debug_barrier()
