"""Device kernels over whole tokens: their statistics before, and x's gradient after the tiles.

A program takes a few tokens with all their channels, as [tokens, heads, features].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tokens(x, token, there, PLAN: tl.constexpr):
    """Channels of the tokens in float32, 0 beyond; where they lie, and which exist."""
    head = tl.arange(0, PLAN.padded_heads)[None, :, None]
    feature = tl.arange(0, PLAN.padded_features)[None, None, :]
    exists = there[:, None, None] & (head < PLAN.heads) & (feature < PLAN.features)
    place = token[:, None, None] * PLAN.channels + head * PLAN.features + feature
    return tl.load(x + place, mask=exists, other=0.0).to(tl.float32), place, exists


@triton.jit
def statistics_kernel(x, statistics, count, PLAN: tl.constexpr):
    """One factor a head (RMS step, released form), then mean and variance over all channels."""
    token = tl.program_id(0).to(tl.int64) * PLAN.group + tl.arange(0, PLAN.group)
    there = token < count
    u, _, exists = load_tokens(x, token, there, PLAN)
    own = statistics + token * PLAN.kept
    if PLAN.released:
        factor = 1 / tl.sqrt(tl.sum(u * u, 2) / PLAN.features + PLAN.eps)
        u = u * factor[:, :, None]
        head = tl.arange(0, PLAN.padded_heads)[None, :]
        tl.store(own[:, None] + head, factor, mask=there[:, None] & (head < PLAN.heads))
    mean = tl.sum(tl.sum(u, 2), 1) / PLAN.channels
    off = tl.where(exists, u - mean[:, None, None], 0.0)
    variance = tl.sum(tl.sum(off * off, 2), 1) / (PLAN.channels - PLAN.released)
    tl.store(own + PLAN.kept - 2, mean, mask=there)
    tl.store(own + PLAN.kept - 1, variance, mask=there)


@triton.jit
def through_own_statistics(u, statistics, sums, token, there, PLAN: tl.constexpr):
    """What the tiles' gradients of a token's mean and variance send back to u."""
    part = tl.arange(0, PLAN.padded_parts)[None, :]
    at = sums + token[:, None] * (2 * PLAN.parts) + 2 * part
    known = there[:, None] & (part < PLAN.parts)
    of_mean = tl.sum(tl.load(at, mask=known, other=0.0), 1) / PLAN.channels
    of_variance = tl.sum(tl.load(at + 1, mask=known, other=0.0), 1)
    of_variance = of_variance * (2 / (PLAN.channels - PLAN.released))
    mean = tl.load(statistics + token * PLAN.kept + PLAN.kept - 2, mask=there, other=0.0)
    return (u - mean[:, None, None]) * of_variance[:, None, None] - of_mean[:, None, None]


@triton.jit
def finish_kernel(
    x,
    slot,
    statistics,
    u_gradient,
    sums,
    x_gradient,
    count,
    tokens,
    slot_stride,
    PLAN: tl.constexpr,
):
    """x's gradient from the tiles' part of u's: adds what goes through the token's own statistics,
    then goes back through the RMS step.
    """
    token = tl.program_id(0).to(tl.int64) * PLAN.group + tl.arange(0, PLAN.group)
    written = token < count
    there = written
    if PLAN.hidden:
        place = token % tokens - PLAN.prefix
        at = slot + token // tokens * slot_stride + place
        on_grid = there & (place >= 0)
        there = there & (~on_grid | (tl.load(at, mask=on_grid, other=-1) >= 0))
    u, place, exists = load_tokens(x, token, there, PLAN)
    head = tl.arange(0, PLAN.padded_heads)[None, :]
    factor = 1.0
    if PLAN.released:
        at = statistics + token[:, None] * PLAN.kept + head
        wanted = there[:, None] & (head < PLAN.heads)
        factor = tl.load(at, mask=wanted, other=0.0)[:, :, None]
    u = u * factor
    slope = tl.load(u_gradient + place, mask=exists, other=0.0)
    slope += through_own_statistics(u, statistics, sums, token, there, PLAN)
    slope = tl.where(exists, slope, 0.0)
    if PLAN.released:
        slope = factor * (slope - u * (tl.sum(slope * u, 2) / PLAN.features)[:, :, None])
    feature = tl.arange(0, PLAN.padded_features)[None, None, :]
    inside = written[:, None, None] & (head[:, :, None] < PLAN.heads) & (feature < PLAN.features)
    tl.store(x_gradient + place, slope.to(x_gradient.dtype.element_ty), mask=inside)
