"""DTN's backward pass on the device: everything but x and its tokens' statistics is made again.

With z the normalised value, t = dL/dz / deviation and e = dL/d(variance), as in the C kernel. A
tile leaves the part of u's gradient that comes by the neighbourhoods; parameters' gradients and
sums over channels go out as parts of each tile, which are added later, in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych.norms.kernels.triton_axes import (
    column_kernel,
    full_kernel,
    row_kernel,
    score_slopes,
    weight_slopes,
)
from triptych.norms.kernels.triton_tile import (
    channel_means,
    column_chunk,
    load_own,
    load_parameters,
    load_prepared,
    locate_tile,
    normalized,
    outer_product,
    product,
    row_chunk,
    smooth_rows,
)


@triton.jit
def store_sums(sums, token, there, of_mean, of_variance, head, block, PLAN: tl.constexpr):
    """This tile's part of the gradients of a token's own mean and variance."""
    at = sums + (token * PLAN.parts + head * PLAN.blocks + block) * 2
    tl.store(at, of_mean, mask=there)
    tl.store(at + 1, of_variance, mask=there)


@triton.jit
def differentiate_prefix(
    x, own, y_gradient, u_gradient, sums, gain, head, block, PLAN: tl.constexpr
):
    """Tokens before the grid; gives the tile's gradients of weight and bias so far."""
    channel = tl.arange(0, PLAN.block)
    exists = channel < PLAN.features - block * PLAN.block
    gain_slope = tl.zeros([PLAN.block], tl.float32)
    shift_slope = tl.zeros([PLAN.block], tl.float32)
    for token in range(-PLAN.prefix, 0):
        u = load_prepared(x, own, token, True, head, block, PLAN)
        mean, variance = load_own(own, token, True, PLAN)
        scale = 1 / tl.sqrt(variance + PLAN.eps)
        at = token * PLAN.channels + channel
        gradient = tl.load(y_gradient + at, mask=exists, other=0.0).to(tl.float32)
        z = (u - mean) * scale
        t = gradient * gain * scale
        gain_slope += gradient * z
        shift_slope += gradient
        tl.store(u_gradient + at, t, mask=exists)
        of_variance = tl.sum(-0.5 * t * z * scale, 0)
        store_sums(sums, token, True, tl.sum(t, 0), of_variance, head, block, PLAN)
    return gain_slope, shift_slope


@triton.jit
def kernel_slope_of_columns(slope, kernel, squares, first, PLAN: tl.constexpr):
    """Through the kernel of one column of targets: to the position weights, and to what each row
    weighs for that column, which is left behind ``squares``.
    """
    slopes = squares + PLAN.height * PLAN.width * PLAN.block
    slope = score_slopes(kernel, slope)
    row = tl.arange(0, PLAN.padded_y)
    tl.store(slopes + row * PLAN.width + first, tl.sum(slope, 1), mask=row < PLAN.height)
    return weight_slopes(slope, PLAN.padded_y)


@triton.jit
def load_pair(first, second, place, inside):
    """The same place of two parts of the scratch, 0 where nothing lies."""
    return tl.load(first + place, mask=inside, other=0.0), tl.load(
        second + place, mask=inside, other=0.0
    )


@triton.jit
def normalize_again(
    x, own, token, there, centre, mean, mean_square, ratios, head, block, PLAN: tl.constexpr
):
    """z and 1 / deviation of a chunk, and how far its own moments are from the others."""
    mean_ratio, variance_ratio = ratios
    u = load_prepared(x, own, token, there, head, block, PLAN) - centre[None, None, :]
    own_mean, own_variance = load_own(own, token, there, PLAN)
    gap = own_mean - centre[None, None, :] - mean
    z, scale, variance_gap = normalized(
        u, mean, mean_square, gap, own_variance, mean_ratio, variance_ratio, PLAN.eps
    )
    return z, scale, gap, variance_gap


@triton.jit
def differentiate_tokens(
    y_gradient,
    u_gradient,
    sums,
    token,
    there,
    z,
    scale,
    gain,
    ratios,
    head,
    block,
    PLAN: tl.constexpr,
):
    """Leaves t in ``u_gradient`` and the tile's sums over channels; gives dL/dy, t and e."""
    mean_ratio, variance_ratio = ratios
    channel = tl.arange(0, PLAN.block)[None, None, :]
    at = token * PLAN.channels + channel
    exists = there & (channel < PLAN.features - block * PLAN.block)
    gradient = tl.load(y_gradient + at, mask=exists, other=0.0).to(tl.float32)
    t = gradient * gain[None, None, :] * scale
    e = -0.5 * t * z * scale
    tl.store(u_gradient + at, t, mask=exists)
    of_mean, of_variance = mean_ratio * tl.sum(t, 2), variance_ratio * tl.sum(e, 2)
    store_sums(sums, token, there, of_mean[:, :, None], of_variance[:, :, None], head, block, PLAN)
    return gradient, t, e


@triton.jit
def differentiate_columns(
    x,
    own,
    slot,
    y_gradient,
    u_gradient,
    sums,
    scratch,
    centre,
    gain,
    ratios,
    weights,
    gain_slope,
    shift_slope,
    head,
    block,
    PLAN: tl.constexpr,
):
    """Leaves t in ``u_gradient``, turns the sums along x in the scratch into their gradients."""
    mean_ratio, variance_ratio = ratios
    along_x, along_y, square = weights
    squares = scratch + PLAN.height * PLAN.width * PLAN.block
    kernel = full_kernel(along_y, square, PLAN.height, PLAN.padded_y)
    kernel_slope = tl.zeros([PLAN.padded_y, PLAN.padded_y], tl.float32)
    mean_slope, variance_slope, linear_slope, square_slope = 0.0, 0.0, 0.0, 0.0
    for first in range(0, PLAN.width, PLAN.columns):
        token, there, place, inside = column_chunk(slot, first, PLAN)
        if PLAN.masked:
            kernel = column_kernel(slot, first, along_x, along_y, square, PLAN)
        over = tl.trans(kernel)
        sum_x, square_sum_x = load_pair(scratch, squares, place, inside)
        mean, mean_square = product(over, sum_x, PLAN), product(over, square_sum_x, PLAN)
        z, scale, gap, variance_gap = normalize_again(
            x, own, token, there, centre, mean, mean_square, ratios, head, block, PLAN
        )
        gradient, t, e = differentiate_tokens(
            *(y_gradient, u_gradient, sums, token, there, z, scale, gain, ratios),
            *(head, block, PLAN),
        )
        gain_slope += tl.sum(tl.sum(gradient * z, 1), 0)
        shift_slope += tl.sum(tl.sum(gradient, 1), 0)
        mean_slope -= tl.sum(tl.sum(tl.sum(t * gap, 2), 1), 0)
        variance_slope += tl.sum(tl.sum(tl.sum(e * variance_gap, 2), 1), 0)
        # A variance that rounding left below 0 was set to 0.
        d_square = tl.where(mean_square > mean * mean, (1 - variance_ratio) * e, 0.0)
        d_mean = (mean_ratio - 1) * t - 2 * mean * d_square
        slope = outer_product(sum_x, d_mean, PLAN) + outer_product(square_sum_x, d_square, PLAN)
        if PLAN.masked:
            linear, quadratic = kernel_slope_of_columns(slope, kernel, squares, first, PLAN)
            linear_slope, square_slope = linear_slope + linear, square_slope + quadratic
        else:
            kernel_slope += slope
        tl.store(scratch + place, product(kernel, d_mean, PLAN), mask=inside)
        tl.store(squares + place, product(kernel, d_square, PLAN), mask=inside)
    if not PLAN.masked:
        slope = score_slopes(kernel, kernel_slope)
        linear_slope, square_slope = weight_slopes(slope, PLAN.padded_y)
    mean_slope *= mean_ratio * (1 - mean_ratio)
    variance_slope *= variance_ratio * (1 - variance_ratio)
    return gain_slope, shift_slope, mean_slope, variance_slope, linear_slope, square_slope


@triton.jit
def differentiate_rows(
    x, own, slot, u_gradient, scratch, centre, along_x, square, head, block, PLAN: tl.constexpr
):
    """Adds to ``u_gradient`` what the sums along x send back; gives the position slopes."""
    squares = scratch + PLAN.height * PLAN.width * PLAN.block
    slopes = squares + PLAN.height * PLAN.width * PLAN.block
    kernel = full_kernel(along_x, square, PLAN.width, PLAN.padded_x)
    kernel_slope = tl.zeros([PLAN.padded_x, PLAN.padded_x], tl.float32)
    linear_slope, square_slope = 0.0, 0.0
    channel = tl.arange(0, PLAN.block)[None, None, :]
    for first in range(0, PLAN.height, PLAN.rows):
        token, there, place, inside = row_chunk(slot, first, PLAN)
        u = load_prepared(x, own, token, there, head, block, PLAN)
        u = tl.where(there, u - centre[None, None, :], 0.0)
        if PLAN.masked:
            kernel = row_kernel(slot, first, along_x, square, PLAN)
        d_sum, d_square_sum = load_pair(scratch, squares, place, inside)
        slope = outer_product(u, d_sum, PLAN) + outer_product(u * u, d_square_sum, PLAN)
        if PLAN.masked:
            column = tl.arange(0, PLAN.padded_x)
            at = slopes + first * PLAN.width + column
            of_row = tl.load(at, mask=column < PLAN.width, other=0.0)
            slope = score_slopes(kernel, slope) + kernel * of_row[None, :]
            linear, quadratic = weight_slopes(slope, PLAN.padded_x)
            linear_slope += linear
            square_slope += quadratic
        else:
            kernel_slope += slope
        at = u_gradient + token * PLAN.channels + channel
        exists = there & (channel < PLAN.features - block * PLAN.block)
        t = tl.load(at, mask=exists, other=0.0)
        t += product(kernel, d_sum, PLAN) + 2 * u * product(kernel, d_square_sum, PLAN)
        tl.store(at, t, mask=exists)
    if not PLAN.masked:
        slope = score_slopes(kernel, kernel_slope)
        linear_slope, square_slope = weight_slopes(slope, PLAN.padded_x)
    return linear_slope, square_slope


@triton.jit
def backward_kernel(
    x,
    weight,
    mean_logit,
    variance_logit,
    position,
    slot,
    statistics,
    y_gradient,
    u_gradient,
    sums,
    channel_slopes,
    scalar_slopes,
    scratch,
    tiles,
    tokens,
    slot_stride,
    PLAN: tl.constexpr,
):
    """The tiles that fall to this program: u's gradient by the neighbourhoods, (B, N, C); parts of
    the tokens' sums (B, N, H·K, 2), of weight's and bias's gradients (B, 2, C), and of the five
    numbers of each head (B, H, K, 5).
    """
    scratch += tl.program_id(0).to(tl.int64) * PLAN.scratch
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        sample, head, block, begin, own_begin = locate_tile(tile, tokens, PLAN)
        gain, mean_ratio, variance_ratio, along_x, along_y, square = load_parameters(
            weight, mean_logit, variance_logit, position, head, block, PLAN
        )
        own, held = statistics + own_begin, slot + sample * slot_stride
        y_at, u_at = y_gradient + begin, u_gradient + begin
        sums_at = sums + (sample * tokens + PLAN.prefix) * (2 * PLAN.parts)
        gain_slope, shift_slope = differentiate_prefix(
            x + begin, own, y_at, u_at, sums_at, gain, head, block, PLAN
        )
        centre = channel_means(x + begin, own, held, head, block, PLAN)
        smooth_rows(x + begin, own, held, scratch, centre, along_x, square, head, block, PLAN)
        tl.debug_barrier()
        ratios, weights = (mean_ratio, variance_ratio), (along_x, along_y, square)
        gain_slope, shift_slope, of_mean, of_variance, of_y, of_square = differentiate_columns(
            *(x + begin, own, held, y_at, u_at, sums_at, scratch, centre, gain),
            *(ratios, weights, gain_slope, shift_slope, head, block, PLAN),
        )
        tl.debug_barrier()
        of_x, of_square_too = differentiate_rows(
            x + begin, own, held, u_at, scratch, centre, along_x, square, head, block, PLAN
        )
        tl.debug_barrier()
        channel = block * PLAN.block + tl.arange(0, PLAN.block)
        at = channel_slopes + sample * (2 * PLAN.channels) + head * PLAN.features + channel
        tl.store(at, gain_slope, mask=channel < PLAN.features)
        tl.store(at + PLAN.channels, shift_slope, mask=channel < PLAN.features)
        tl.store(scalar_slopes + tile * 5, of_mean)
        tl.store(scalar_slopes + tile * 5 + 1, of_variance)
        tl.store(scalar_slopes + tile * 5 + 2, of_x)
        tl.store(scalar_slopes + tile * 5 + 3, of_y)
        tl.store(scalar_slopes + tile * 5 + 4, of_square + of_square_too)
