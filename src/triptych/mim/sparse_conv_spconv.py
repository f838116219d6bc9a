"""spconv's arithmetic on index pairs that were made with the mask.

The pairs name output rows by token, so the rows come out in the order of the tokens. Only a CUDA
build is used: the CPU build adds up wrongly with more than one thread and has no backward pass.
Index pairs and their counts are made on the host, so the device is not waited for. spconv has no
depthwise convolution.

Shapes: Q samples that share a plan, N input tokens, M output tokens, C channels, F kernel
positions, R rows of index pairs.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triptych.mim.sparse_conv_plan import ConvolutionPlan


@cache
def has_cuda_build() -> bool:
    """Whether spconv is installed with its CUDA arithmetic, and there is a device for it."""
    if not torch.cuda.is_available():
        return False
    _ops()
    from spconv import cppconstants

    return not cppconstants.CPU_ONLY_BUILD


def convolve(x_QNC: Tensor, weight: Tensor, bias: Tensor | None, plan: ConvolutionPlan) -> Tensor:
    """Convolve visible tokens (Q, N, C) with a weight as torch has it: (Q, M, C).

    Raises:
        ValueError: the plan was made without index pairs.
    """
    if plan.pairs is None or plan.pair_counts is None:
        raise ValueError("the plan was made without index pairs; make it with pairs=True")
    samples = len(x_QNC)
    outputs = plan.tiles.shape[0] * plan.outputs[0] * plan.outputs[1]
    pairs, counts = _for_samples(plan.pairs, plan.pair_counts, samples, plan.inputs, outputs)
    y = _PairConvolution.apply(
        x_QNC.flatten(0, 1), weight.permute(0, 2, 3, 1), pairs, counts, samples * outputs
    )
    y_QMC = y.view(samples, outputs, -1)
    return y_QMC if bias is None else y_QMC + bias


class _PairConvolution(torch.autograd.Function):
    """spconv's gather, product and addition; weights are (out, kernel, kernel, in)."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight: Tensor, pairs_2FR: Tensor, counts_F: Tensor, outputs: int
    ) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(x_NC, weight, pairs_2FR, counts_F)
        return _ops().indice_conv(x_NC, weight, pairs_2FR, counts_F, outputs, algo=_native())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, weight, pairs_2FR, counts_F = ctx.saved_tensors
        grad_x, grad_weight = _ops().indice_conv_backward(
            x_NC, weight, grads[0].contiguous(), pairs_2FR, counts_F, algo=_native()
        )
        return grad_x, grad_weight, None, None, None


def _for_samples(
    pairs_2FR: Tensor, counts_F: Tensor, samples: int, inputs: int, outputs: int
) -> tuple[Tensor, Tensor]:
    """The pairs of ``samples`` samples that share them, numbered through the batch."""
    if samples == 1:
        return pairs_2FR, counts_F
    step = torch.tensor([inputs, outputs], dtype=pairs_2FR.dtype)
    first = (step[:, None] * torch.arange(samples, dtype=pairs_2FR.dtype)).to(
        pairs_2FR.device, non_blocking=True
    )
    repeated = pairs_2FR.new_full((2, pairs_2FR.shape[1], samples * pairs_2FR.shape[2]), -1)
    for position, count in enumerate(counts_F.tolist()):
        listed = pairs_2FR[:, position, None, :count] + first[:, :, None]
        repeated[:, position, : samples * count] = listed.flatten(1)
    return repeated, counts_F * samples


@cache
def _ops() -> Any:
    # Loading it makes torch's tracer report on itself, and its helpers warn of their own age.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from spconv.pytorch import ops

    return ops


@cache
def _native() -> Any:
    _ops()
    from spconv.core import ConvAlgo

    return ConvAlgo.Native
