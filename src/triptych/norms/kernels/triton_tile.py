"""A tile on the device: some channels of one head of one sample, with all tokens of the grid.

A program walks the grid in chunks and sums it axis by axis: first along x, into scratch memory of
its own, then along y. What one thread writes there another reads, so a barrier lies between. The
programs are few, so that their scratch stays in the second-level cache.

Shapes: [Y or X, chunk, channels], Y and X padded to powers of two; scratch (2, Y, X, channels)
holds sums of the centred values and of their squares.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych.norms.kernels.triton_axes import full_kernel, row_kernel


@triton.jit
def sigmoid(logit):
    return 1 / (1 + tl.exp(-logit.to(tl.float32)))


@triton.jit
def locate_tile(tile, tokens, PLAN: tl.constexpr):
    """Sample, head and block of channels of a tile; where it begins in x, and in its statistics."""
    block = tile % PLAN.blocks
    head = tile // PLAN.blocks % PLAN.heads
    sample = tl.cast(tile // PLAN.parts, tl.int64)
    begin = sample * tokens + PLAN.prefix
    first = head * PLAN.features + block * PLAN.block
    return sample, head, block, begin * PLAN.channels + first, begin * PLAN.kept


@triton.jit
def load_parameters(weight, mean_logit, variance_logit, position, head, block, PLAN: tl.constexpr):
    """Of a tile: weight [channels], ratios of mean and variance, and position weights."""
    channel = block * PLAN.block + tl.arange(0, PLAN.block)
    at = weight + head * PLAN.features + channel
    gain = tl.load(at, mask=channel < PLAN.features, other=0.0).to(tl.float32)
    mean_ratio = 1.0
    if PLAN.mixed:
        mean_ratio = sigmoid(tl.load(mean_logit + head))
    variance_ratio = sigmoid(tl.load(variance_logit + head))
    along_x = tl.load(position + 3 * head).to(tl.float32)
    along_y = tl.load(position + 3 * head + 1).to(tl.float32)
    square = tl.load(position + 3 * head + 2).to(tl.float32)
    return gain, mean_ratio, variance_ratio, along_x, along_y, square


@triton.jit
def locate(slot, y, x, PLAN: tl.constexpr):
    """Number of the token at a place of the grid, counted from the grid's first; is there one?"""
    there = (y < PLAN.height) & (x < PLAN.width)
    token = y * PLAN.width + x
    if PLAN.masked:
        token = tl.load(slot + token, mask=there, other=-1)
        there = there & (token >= 0)
    return token, there


@triton.jit
def load_prepared(x, own, token, there, head, block, PLAN: tl.constexpr):
    """The tile's values, after the RMS step of the released form; 0 where no token is."""
    channel = tl.arange(0, PLAN.block)
    exists = there & (channel < PLAN.features - block * PLAN.block)
    u = tl.load(x + token * PLAN.channels + channel, mask=exists, other=0.0).to(tl.float32)
    if PLAN.released:
        u = u * tl.load(own + token * PLAN.kept + head, mask=there, other=0.0)
    return u


@triton.jit
def load_own(own, token, there, PLAN: tl.constexpr):
    """Mean and variance of the tokens over all their channels."""
    at = own + token * PLAN.kept + PLAN.kept - 2
    return tl.load(at, mask=there, other=0.0), tl.load(at + 1, mask=there, other=0.0)


@triton.jit
def row_chunk(slot, first, PLAN: tl.constexpr):
    """Tokens [X, rows, 1] from row ``first``; their place in the scratch, and what lies inside."""
    column = tl.arange(0, PLAN.padded_x)[:, None, None]
    row = first + tl.arange(0, PLAN.rows)[None, :, None]
    token, there = locate(slot, row, column, PLAN)
    place = (row * PLAN.width + column) * PLAN.block + tl.arange(0, PLAN.block)[None, None, :]
    return token, there, place, (row < PLAN.height) & (column < PLAN.width)


@triton.jit
def column_chunk(slot, first, PLAN: tl.constexpr):
    """The same for columns, [Y, columns, 1]."""
    row = tl.arange(0, PLAN.padded_y)[:, None, None]
    column = first + tl.arange(0, PLAN.columns)[None, :, None]
    token, there = locate(slot, row, column, PLAN)
    place = (row * PLAN.width + column) * PLAN.block + tl.arange(0, PLAN.block)[None, None, :]
    return token, there, place, (row < PLAN.height) & (column < PLAN.width)


@triton.jit
def channel_means(x, own, slot, head, block, PLAN: tl.constexpr):
    """A constant near each channel's tokens: taken off, it spares the variance its digits."""
    total = tl.zeros([PLAN.block], tl.float32)
    count = 0.0
    for first in range(0, PLAN.height, PLAN.rows):
        token, there, _, _ = row_chunk(slot, first, PLAN)
        u = load_prepared(x, own, token, there, head, block, PLAN)
        total += tl.sum(tl.sum(u, 0), 0)
        count += tl.sum(tl.sum(tl.sum(there.to(tl.float32), 2), 1), 0)
    return total / tl.maximum(count, 1.0)


@triton.jit
def product(kernel, values, PLAN: tl.constexpr):
    """``kernel`` times values [side, chunk, channels] along their side."""
    side: tl.constexpr = values.shape[0]
    chunk: tl.constexpr = values.shape[1]
    flat = tl.reshape(values, [side, chunk * PLAN.block])
    flat = tl.dot(kernel, flat, input_precision=PLAN.precision)
    return tl.reshape(flat, [side, chunk, PLAN.block])


@triton.jit
def outer_product(sources, targets, PLAN: tl.constexpr):
    """Sum over all but the side: the gradient of a kernel [source, target]."""
    side: tl.constexpr = sources.shape[0]
    length: tl.constexpr = sources.shape[1] * PLAN.block
    left = tl.reshape(sources, [side, length])
    right = tl.trans(tl.reshape(targets, [side, length]))
    return tl.dot(left, right, input_precision=PLAN.precision)


@triton.jit
def smooth_rows(x, own, slot, scratch, centre, along_x, square, head, block, PLAN: tl.constexpr):
    """Fills the scratch with the sums along x."""
    kernel = full_kernel(along_x, square, PLAN.width, PLAN.padded_x)
    squares = scratch + PLAN.height * PLAN.width * PLAN.block
    for first in range(0, PLAN.height, PLAN.rows):
        token, there, place, inside = row_chunk(slot, first, PLAN)
        u = load_prepared(x, own, token, there, head, block, PLAN)
        u = tl.where(there, u - centre[None, None, :], 0.0)
        if PLAN.masked:
            kernel = row_kernel(slot, first, along_x, square, PLAN)
        over = tl.trans(kernel)
        tl.store(scratch + place, product(over, u, PLAN), mask=inside)
        tl.store(squares + place, product(over, u * u, PLAN), mask=inside)


@triton.jit
def normalized(u, mean, square, mean_gap, own_variance, mean_ratio, variance_ratio, EPS):
    """z, 1 / deviation, and how far the token's own variance is from that around it; u and its
    neighbourhood's moments are centred.
    """
    variance = tl.maximum(square - mean * mean, 0.0)
    variance_gap = own_variance - variance
    scale = 1 / tl.sqrt(variance + variance_ratio * variance_gap + EPS)
    z = (u - mean - mean_ratio * mean_gap) * scale
    return z, scale, variance_gap
