"""What is measured, and how it is left as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


def adamw(parameters: list[nn.Parameter]) -> Optimizer:
    """The optimizer of a measured training step unless another is asked for."""
    return AdamW(parameters, lr=1e-4)


@dataclass(frozen=True)
class Candidate:
    """A model and what a step of it is.

    Args:
        model: the module whose parameters are trained; it stays on its device.
        make_batch: makes the batch, on the device of the model, once for each measurement.
        images: number of images in the batch.
        loss: (model, batch) → scalar loss of a training step; forward pass only.
        infer: (model, batch) → the prediction; called in evaluation mode, without gradients.
        optimizer: makes the optimizer from the trainable parameters; its step is part of a
            training step.
    """

    model: nn.Module
    make_batch: Callable[[], Any]
    images: int
    loss: Callable[[nn.Module, Any], Tensor]
    infer: Callable[[nn.Module, Any], Any]
    optimizer: Callable[[list[nn.Parameter]], Optimizer] = adamw

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError("the model has no trainable parameter, so no training step")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class TrainingStep:
    """Forward, backward and optimizer; gradients are dropped at the start.

    Puts the model in training mode when it is made.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.batch = candidate.make_batch()
        trainable = [p for p in candidate.model.parameters() if p.requires_grad]
        self.optimizer = candidate.optimizer(trainable)
        candidate.model.train()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.candidate.loss(self.candidate.model, self.batch).backward()
        self.optimizer.step()


class InferenceStep:
    """One prediction without gradients; puts the model in evaluation mode when it is made."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.batch = candidate.make_batch()
        candidate.model.eval()

    @torch.no_grad()
    def __call__(self) -> None:
        self.candidate.infer(self.candidate.model, self.batch)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back weights, buffers, gradients, modes and random number generators at the end."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    modes = [(module, module.training) for module in model.modules()]
    # Gradients from before must neither be added to nor counted.
    for parameter in model.parameters():
        parameter.grad = None
    try:
        with preserved_rng():
            yield
    finally:
        for module, names in buffers:
            module._buffers.clear()
            module._buffers.update(names)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back the generators of torch (all devices), NumPy and ``random`` at the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
