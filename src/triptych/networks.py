"""The network that ``task=visualization`` looks at, with its weights and its normalisation."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import timm
from safetensors.torch import load_file
from torch import nn

from triptych.assembly import build_model, load_data, put_norm
from triptych.backbones.build import takes_image_size
from triptych.choices import Family, PretrainName, Weights
from triptych.config import ConfigError, RunConfig
from triptych.data.images import FILE_STATISTICS, ImageData
from triptych.export import CLASSIFIERS
from triptych.mim.checkpoints import backbone_state
from triptych.mim.weights import WeightsError, load_backbone, read_weights
from triptych.subject import finished_run, run_weights
from triptych.tasks.classifier_file import load_classifier
from triptych.training import start_from_pretraining
from triptych.visualization.layouts import backbone_layout
from triptych.visualization.readers import reader_of

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
# A model without classes of its own still has a head, of one output, that nothing is asked of.
NO_CLASSES = 1
UNTRAINED_CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """Attributes:
    model: in no mode in particular.
    classes: how many it tells apart; ``NO_CLASSES`` where the weights have no classifier.
    mean, std: normalisation that it was trained with, of pixels in [0, 1].
    weights: where they come from, in words.
    trained: False for random weights.
    data: images of the run that trained it; None without one.
    """

    model: nn.Module
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    trained: bool = True
    data: ImageData | None = None


def load_network(config: RunConfig) -> Network:
    """Build the backbone of ``config`` and give it the weights that ``config.task`` names.

    Raises:
        ConfigError: timm does not know the model, or it has no attention to look at.
        WeightsError: the weights cannot be read, do not fit, or cannot be had.
    """
    task, pre = config.task, config.pretrain
    if task.run:
        return _of_run(config)
    mean, std = _statistics(config)
    if task.checkpoint:
        path = Path(task.checkpoint)
        classes = _classes_in(path)
        model = build_checked(config, classes)
        if classes == NO_CLASSES:
            load_backbone(model, path)
        else:
            load_classifier(model, path)
        return Network(model, classes, mean, std, f"the file {path.name}")
    if pre.name is PretrainName.checkpoint:
        model = build_checked(config, NO_CLASSES)
        start_from_pretraining(config, model)
        name = Path(str(pre.checkpoint)).name
        return Network(model, NO_CLASSES, mean, std, f"the file {name}, features alone")
    if task.weights is Weights.untrained:
        known = _published(config)
        classes = known.num_classes if known else UNTRAINED_CLASSES
        model = build_checked(config, classes or UNTRAINED_CLASSES)
        return Network(model, classes or UNTRAINED_CLASSES, mean, std, "none: untrained", False)
    return _of_timm(config, (mean, std))


def build_checked(config: RunConfig, classes: int) -> nn.Module:
    """The untrained backbone, if its attention can be captured.

    Raises:
        ConfigError: timm does not know the model, or it has no attention to look at.
    """
    bone, side = config.backbone, config.data.image_size
    name = f"backbone.timm_name={bone.timm_name}" if bone.timm_name else f"backbone={bone.name}"
    try:
        model = build_model(config, classes)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{name} cannot be built at data.image_size={side}: {error}") from error
    try:
        for block in backbone_layout(model, (side, side)).blocks:
            reader_of(block)
    except ValueError as error:
        raise ConfigError(f"{name} has no attention maps to look at: {error}") from error
    return model


def _of_run(config: RunConfig) -> Network:
    folder = Path(str(config.task.run))
    run = finished_run(folder)
    own = load_data(run)
    assert isinstance(own, ImageData)  # a run of sequences is refused beforehand
    path = run_weights(folder, run)
    model = build_checked(run, own.num_classes)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit backbone={run.backbone.name} with norm={run.norm.name} as its "
            f"run says: {' '.join(str(error).split())[:200]}"
        ) from error
    return Network(model, own.num_classes, own.mean, own.std, f"the run {folder.name}", data=own)


def _of_timm(config: RunConfig, statistics: Statistics) -> Network:
    """A timm model with its published weights, from the hub's cache or from the network."""
    name = str(config.backbone.timm_name)
    build_checked(config, NO_CLASSES)
    known = _published(config)
    classes = (known.num_classes if known else 0) or NO_CLASSES
    side = config.data.image_size
    sized: dict[str, Any] = {"img_size": (side, side)} if takes_image_size(name) else {}
    try:
        with _no_waiting_without_network():
            model = timm.create_model(
                name,
                pretrained=True,
                in_chans=config.data.channels,
                num_classes=classes,
                **sized,
            )
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"the published weights of {name} are neither in the cache nor to be had from the "
            f"network ({reason[:160]}); give task.checkpoint=FILE, or ask for "
            "task.weights=untrained"
        ) from error
    put_norm(model, config.norm, (side, side))
    return Network(model, classes, *statistics, f"published for {known.architecture}.{known.tag}"
                   if known else "published")  # fmt: skip


@contextmanager
def _no_waiting_without_network() -> Iterator[None]:
    """The hub's client tries for a minute where no name is resolved; so it looks in its cache."""
    from huggingface_hub import constants

    former = constants.HF_HUB_OFFLINE
    if not getproxies():
        try:
            socket.getaddrinfo("huggingface.co", 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = former


def _published(config: RunConfig) -> Any:
    """What timm notes of a model's published weights; None for our own backbones."""
    bone = config.backbone
    if bone.family is not Family.timm or not timm.is_model(str(bone.timm_name)):
        return None
    return timm.models.get_pretrained_cfg(str(bone.timm_name))


def _statistics(config: RunConfig) -> Statistics:
    """Those that timm notes, else those of the data, else ImageNet's."""
    known, channels = _published(config), config.data.channels
    if known is not None and channels == len(known.mean):
        return tuple(known.mean), tuple(known.std)
    if known is not None and channels == 1:
        return (sum(known.mean) / 3,), (sum(known.std) / 3,)
    if config.data.name.trains:
        data = load_data(config)
        assert isinstance(data, ImageData)
        return data.mean, data.std
    return FILE_STATISTICS[channels]


def _classes_in(path: Path) -> int:
    """How many classes the classifier in a file tells apart; ``NO_CLASSES`` without one."""
    state = backbone_state(read_weights(path))
    return next((len(state[key]) for key in CLASSIFIERS if key in state), NO_CLASSES)
