"""A whole classifier from a file: features and the layer that makes logits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from triptych.mim.checkpoints import backbone_state
from triptych.mim.weights import WeightsError, load_backbone, read_weights

_HEAD = "head."


def load_classifier(model: nn.Module, path: Path) -> None:
    """Give ``model`` the features and the classifier of a file.

    Files: what :func:`triptych.mim.load_backbone` takes, of fine-tuned networks, among them the
    ``task.safetensors`` of our runs. Position embeddings and bias tables of other image sizes are
    interpolated.

    Raises:
        WeightsError: the file cannot be read, is of another network, or holds no classifier for
            as many classes.
    """
    load_backbone(model, path)
    given = {
        name: tensor
        for name, tensor in backbone_state(read_weights(path)).items()
        if name.startswith(_HEAD)
    }
    own = {name: part for name, part in model.state_dict().items() if name.startswith(_HEAD)}
    # timm's Swin keeps its classifier one level deeper than the published files.
    if "head.fc.weight" in own and "head.weight" in given:
        given = {name.replace(_HEAD, "head.fc."): tensor for name, tensor in given.items()}
    for name, part in own.items():
        found = given.get(name)
        if found is None or found.shape != part.shape:
            has = "none" if found is None else f"one of shape {tuple(found.shape)}"
            raise WeightsError(
                f"{path} holds no classifier for these images: {name} of shape "
                f"{tuple(part.shape)} is needed, and it has {has}; give the weights of a network "
                "that was fine-tuned on the same classes"
            )
    model.load_state_dict(given, strict=False)
