"""Frozen features: what a backbone hands its classifier, for every image once.

Shapes: N images, C channels of a feature, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """Features (N, C), float32, and labels (N,), int64, of training and test images."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def save(self, path: Path) -> None:
        """Write all four as safetensors, whole or not at all."""
        unfinished = path.with_suffix(".unfinished")
        save_file(dict(vars(self)), unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Features:
        return cls(**load_file(path))

    def labelled(self, places: Any) -> Features:
        """With the training images at ``places`` alone."""
        return Features(self.train[places], self.train_labels[places], self.test, self.test_labels)


def classifier_of(model: nn.Module) -> nn.Linear:
    """The linear layer that makes a model's logits: the last one under ``head``, else of all.

    Raises:
        ValueError: the model ends in no linear layer.
    """
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    heads = [part for name, part in layers if name.split(".")[0].startswith(("head", "fc"))]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer that could be its classifier")
    return (heads or [part for _, part in layers])[-1]


@torch.no_grad()
def extract(
    model: nn.Module, batches: Iterable[Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (N, C) and labels (N,) of all images of ``batches``, on the CPU.

    A feature is the input of the classifier: the class token, or the mean over tokens, after the
    last norm, as the backbone is published. Nothing of ``model`` changes.
    """
    former = model.training
    model.eval().to(device)
    seen: list[Tensor] = []
    layer = classifier_of(model)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    labels = []
    try:
        for images, target, _indices in batches:
            model(images.to(device))
            labels.append(target)
    finally:
        hook.remove()
        model.train(former)
    return torch.cat(seen), torch.cat(labels)


def scores(logits_NK: Tensor, labels_N: Tensor, *, loss: bool = True) -> dict[str, float]:
    """Accuracy, with more than five classes top-5 accuracy too, and where asked for the loss."""
    top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices == labels_N[:, None]
    found = {"test/accuracy": float(top[:, 0].double().mean())}
    if loss:
        found["test/loss"] = float(F.cross_entropy(logits_NK, labels_N))
    if logits_NK.shape[1] > 5:
        found["test/accuracy_top5"] = float(top.any(1).double().mean())
    return found
