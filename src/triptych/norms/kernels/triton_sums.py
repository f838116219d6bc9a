"""Adds what the tiles of the backward pass left for the parameters, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl

CHANNELS_AT_ONCE = tl.constexpr(64)
_SAMPLES_AT_ONCE = tl.constexpr(16)
_TILES_AT_ONCE = tl.constexpr(64)


@triton.jit
def sum_samples(parts, out, batch, stride, first, PLAN: tl.constexpr):
    """Over the samples, ``stride`` apart, for a few channels."""
    channel = first + tl.arange(0, CHANNELS_AT_ONCE)[None, :]
    total = tl.zeros([CHANNELS_AT_ONCE], tl.float32)
    for begin in range(0, batch, _SAMPLES_AT_ONCE):
        sample = begin + tl.arange(0, _SAMPLES_AT_ONCE)[:, None]
        known = (sample < batch) & (channel < PLAN.channels)
        total += tl.sum(tl.load(parts + sample * stride + channel, mask=known, other=0.0), 0)
    place = first + tl.arange(0, CHANNELS_AT_ONCE)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=place < PLAN.channels)


@triton.jit
def sums_kernel(
    channel_slopes,
    scalar_slopes,
    weight_gradient,
    bias_gradient,
    mean_gradient,
    variance_gradient,
    position_gradient,
    batch,
    PLAN: tl.constexpr,
):
    """(B, 2, C) and (B, H, K, 5) to the gradients of the parameters; a program for a few channels
    or, after these, for one head.
    """
    groups: tl.constexpr = (PLAN.channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    program = tl.program_id(0)
    if program < groups:
        first = program * CHANNELS_AT_ONCE
        stride: tl.constexpr = 2 * PLAN.channels
        sum_samples(channel_slopes, weight_gradient, batch, stride, first, PLAN)
        sum_samples(channel_slopes + PLAN.channels, bias_gradient, batch, stride, first, PLAN)
    else:
        head = program - groups
        number = tl.arange(0, 8)
        total = tl.zeros([8], tl.float32)
        for begin in range(0, batch * PLAN.blocks, _TILES_AT_ONCE):
            tile = begin + tl.arange(0, _TILES_AT_ONCE)[:, None]
            row = tile // PLAN.blocks * PLAN.heads + head
            at = scalar_slopes + (row * PLAN.blocks + tile % PLAN.blocks) * 5 + number[None, :]
            known = (tile < batch * PLAN.blocks) & (number < 5)[None, :]
            total += tl.sum(tl.load(at, mask=known, other=0.0), 0)
        if PLAN.mixed:
            at = mean_gradient + head + number
            tl.store(at, total.to(mean_gradient.dtype.element_ty), mask=number == 0)
        at = variance_gradient + head + number - 1
        tl.store(at, total.to(variance_gradient.dtype.element_ty), mask=number == 1)
        at = position_gradient + head * 3 + number - 2
        known = (number >= 2) & (number < 5)
        tl.store(at, total.to(position_gradient.dtype.element_ty), mask=known)
