"""Convolutions of visible tokens: as a dense one on a grid with zeros where tokens are hidden.

Kernel equal to stride: a gather and a matrix product. Other kernels: a gather of tiles (see
:mod:`triptych.mim.sparse_conv_plan`) and torch's dense convolution of each, or spconv's arithmetic
where there is a CUDA build of it (:mod:`triptych.mim.sparse_conv_spconv`). Outputs are in the
order of the tokens, whatever computes them, and no gradient is scattered: every sum has one order.

Shapes: B batch, N input tokens, M output tokens, C channels, K visible units, h x w a tile,
Q samples that share a plan (the batch with one plan, 1 with a plan for each sample), S values of
all tiles, U x V mask units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from triptych.mim import sparse_conv_spconv
from triptych.mim.group_attention import select, unselect
from triptych.mim.rows import Slots
from triptych.mim.sparse_conv_plan import Convolution, ConvolutionPlan


def sparse_conv2d(
    conv: nn.Conv2d, x_BNC: Tensor, plan: ConvolutionPlan, by_unit: Slots, shared: bool
) -> Tensor:
    """Convolve visible tokens; hidden ones count as zero.

    Args:
        conv: whose weight and bias are used; depthwise and grouped ones too.
        x_BNC: visible tokens (B, N, C) in row-major order.
        plan: for the geometry of ``conv``.
        by_unit: of the output tokens, see :func:`triptych.mim.sparse_conv_plan.plan_by_unit`.
        shared: one plan for the whole batch.

    Returns:
        The visible outputs (B, M, C), in row-major order.
    """
    if Convolution.of(conv) != plan.convolution:
        raise ValueError(
            f"the plan is for a {plan.convolution}, but the layer is a {Convolution.of(conv)}"
        )
    x_QNC = x_BNC if shared else x_BNC.flatten(0, 1)[None]
    tensors = _as_autocast(x_QNC, conv.weight, conv.bias)
    with torch.autocast(x_BNC.device.type, enabled=False):
        if plan.pairs is not None and conv.groups == 1 and x_BNC.is_cuda:
            y_QMC = sparse_conv_spconv.convolve(*tensors, plan)
        else:
            y_QSC = _TileConvolution.apply(*tensors, plan, conv.groups)
            y_QMC = by_unit.scatter(y_QSC)
    return y_QMC if shared else y_QMC.reshape(len(x_BNC), -1, y_QMC.shape[2])


def convolve_cells(conv: nn.Conv2d, x_BNC: Tensor, slots: Slots, shared: bool) -> Tensor:
    """A convolution whose kernel equals its stride, of whole cells: (B, cells, C).

    ``slots`` puts the tokens of each cell side by side, counted down, then across.
    """
    values = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels
    cells = select(slots, x_BNC, shared).reshape(len(x_BNC), -1, values)
    return F.linear(cells, conv.weight.permute(0, 3, 2, 1).flatten(1), conv.bias)


def convolve_pixels(
    conv: nn.Conv2d,
    images: Tensor,
    units_PK: Tensor,
    visible_PL: Tensor,
    by_unit: Slots,
    unit: int,
) -> Tensor:
    """Convolve images around visible units; pixels of hidden units are not read, but count as zero.

    Args:
        conv: the first layer of a backbone, such as an overlapping patch embedding.
        images: (B, C, height, width).
        units_PK: numbers of the visible units in row-major order.
        visible_PL: bool, the same as a mask.
        by_unit: of the output tokens.
        unit: side of a mask unit in pixels.

    Returns:
        The visible outputs (B, M, C), in row-major order.
    """
    geometry = Convolution.of(conv)
    batch, columns = len(images), images.shape[3] // unit
    (down, across), (below, right) = geometry.padding, geometry.overhang()
    hidden = ~visible_PL.view(-1, 1, images.shape[2] // unit, 1, columns, 1)
    blocks = images.unflatten(3, (-1, unit)).unflatten(2, (-1, unit))
    seen = blocks.masked_fill(hidden, 0).view(images.shape)
    padded = F.pad(seen, (across, right, down, below))
    height, width = geometry.tile((unit // geometry.stride[0], unit // geometry.stride[1]))
    tiles = padded.unfold(2, height, unit).unfold(3, width, unit).permute(0, 2, 3, 1, 4, 5)
    if len(units_PK) == 1:
        chosen = tiles[:, units_PK[0] // columns, units_PK[0] % columns]
    else:
        sample_B1 = torch.arange(batch, device=images.device)[:, None]
        chosen = tiles[sample_B1, units_PK // columns, units_PK % columns]
    y = F.conv2d(chosen.flatten(0, 1), conv.weight, conv.bias, conv.stride, groups=conv.groups)
    y_BMC = y.permute(0, 2, 3, 1).reshape(batch, -1, y.shape[1])
    shared = len(units_PK) == 1
    return unselect(by_unit, y_BMC if shared else y_BMC.flatten(0, 1)[None], batch, shared)


class _TileConvolution(torch.autograd.Function):
    """Tiles of tokens (Q, N, C) under a convolution without padding, (Q, M, C) unit by unit.

    The tiles are gathered again for the backward pass instead of being kept for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_QNC: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: ConvolutionPlan,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x_QNC, weight, plan.tiles, plan.back)
        ctx.plan, ctx.groups, ctx.bias = plan, groups, bias is not None
        tiles = _gather_tiles(x_QNC, plan.tiles)
        y = F.conv2d(tiles, weight, bias, plan.convolution.stride, groups=groups)
        return y.permute(0, 2, 3, 1).reshape(len(x_QNC), -1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_QNC, weight, tiles_Khw, back_NJ = ctx.saved_tensors
        grad = grads[0].reshape(-1, *ctx.plan.outputs, len(weight)).permute(0, 3, 1, 2)
        needed = ctx.needs_input_grad
        grad_tiles, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            _gather_tiles(x_QNC, tiles_Khw),
            weight,
            [len(weight)] if ctx.bias else None,
            ctx.plan.convolution.stride,
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            ctx.groups,
            [needed[0], needed[1], ctx.bias and needed[2]],
        )
        grad_x = _gather_back(grad_tiles, back_NJ, len(x_QNC)) if needed[0] else None
        return grad_x, grad_weight, grad_bias, None, None


def _gather_tiles(x_QNC: Tensor, tiles_Khw: Tensor) -> Tensor:
    """Tiles (Q·K, C, h, w) of tokens, zero where there is none."""
    with_zero = F.pad(x_QNC, (0, 0, 0, 1))
    values_QSC = with_zero.index_select(1, tiles_Khw.flatten())
    return values_QSC.view(-1, *tiles_Khw.shape[1:], x_QNC.shape[2]).permute(0, 3, 1, 2)


def _gather_back(tiles: Tensor, back_NJ: Tensor, samples: int) -> Tensor:
    """Sum what tiles (Q·K, C, h, w) hold of each token, (Q, N, C)."""
    values_QSC = tiles.permute(0, 2, 3, 1).reshape(samples, -1, tiles.shape[1])
    with_zero = F.pad(values_QSC, (0, 0, 0, 1))
    total_QNC = with_zero.index_select(1, back_NJ[:, 0])
    for column_N in back_NJ[:, 1:].unbind(1):
        total_QNC += with_zero.index_select(1, column_N)
    return total_QNC


def _as_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three in the precision that autocast has chosen for convolutions, if it is on."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
