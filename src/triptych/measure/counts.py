"""What can be counted, the same on every machine: parameters, multiply-adds, bytes kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from triptych.measure.candidate import Candidate, InferenceStep, preserved

MIB = 2**20


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones; a shared parameter counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def macs_per_image(
    candidate: Candidate, formulas: Mapping[Any, Callable[..., int]] | None = None
) -> float:
    """Multiply-adds of one image's prediction: half the FLOPs that torch counts.

    Matrix products, convolutions and attention count; element-wise work, norms' statistics,
    softmax and gathers count nothing. An operator that torch has no formula for (a custom kernel)
    counts nothing either, unless ``formulas`` maps it to one (shapes → FLOPs).
    """
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with preserved(candidate.model):
        step = InferenceStep(candidate)
        with FlopCounterMode(display=False, custom_mapping=mapping | dict(formulas or {})) as mode:
            step()
    return mode.get_total_flops() / 2 / candidate.images


def saved_for_backward(candidate: Candidate) -> float:
    """MiB per image that the forward pass of a training step keeps for the backward pass.

    Every storage that autograd saves counts once and whole; those of parameters, buffers and
    the batch do not, as they exist anyway. What an own autograd function keeps other than by
    ``save_for_backward`` is not seen.
    """
    model = candidate.model
    with preserved(model):
        model.train()
        batch = candidate.make_batch()
        resident = [*model.parameters(), *model.buffers()]
        resident += [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        # The tensors are held, so that no address is used twice.
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept.setdefault(_address(tensor), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = candidate.loss(model, batch)
        for tensor in resident:
            kept.pop(_address(tensor), None)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del loss
    return total / MIB / candidate.images


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _attention_flops(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any) -> int:
    # torch 2.14 knows the fused attention kernels of CUDA, but not the one of the CPU.
    return sdpa_flop_count(query_shape, key_shape, value_shape)
