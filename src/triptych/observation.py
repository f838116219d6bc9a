"""``task=visualization``: all pictures of a network that is there, and why some are left out.

Shapes: B images, C image channels, Y and X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.assembly import build_model, image_spec, load_data
from triptych.choices import DataName, VisualizeLevel
from triptych.config import ConfigError, RunConfig
from triptych.data.images import ImageData
from triptych.data.photographs import read_photographs
from triptych.data.probe import probe_set
from triptych.data.samples import SampleKey
from triptych.data.voc import voc_probe_set
from triptych.networks import NO_CLASSES, Network
from triptych.pictures import FOLDER, reconstruction, spread
from triptych.subject import finished_run, run_weights, year_of
from triptych.tasks.dtn_callback import dtn_table
from triptych.tasks.metric_log import read_rows
from triptych.training import CURVES
from triptych.visualization import Picture, gallery_metrics, save_pictures
from triptych.visualization.capture import capture
from triptych.visualization.display import unnormalise
from triptych.visualization.dtn_gallery import dtn_gallery
from triptych.visualization.full_gallery import full_gallery
from triptych.visualization.gallery import brief_gallery, captured_gallery
from triptych.visualization.picture import annotated
from triptych.visualization.probe_set import ProbeSet, bare_probe_set
from triptych.visualization.relevance_gallery import relevance_gallery
from triptych.visualization.view_gallery import view_gallery

UNTRAINED = "Untrained: the weights are random."
AGREEMENT = "robustness is agreement with the undisturbed prediction"
# Pictures that not every network and data set has: name, title, what they need.
CONDITIONAL = (
    ("reconstruction", "Reconstruction of hidden pixels", "a masked image model"),
    ("class_relevance", "Relevance for the predicted class", "classes"),
    ("filters", "Good and bad filters", "filters"),
    ("views", "Views from level to level", "filters"),
    ("view_spread", "Spread of views over the image", "filters"),
    ("findings", "Findings", "findings"),
    ("grouping", "Grouping of object tokens by layer", "objects"),
    ("robustness", "Predictions under dropped and shuffled cells", "classes"),
    ("faithfulness", "Deletion and insertion", "classes"),
    ("embedding", "Tokens in the plane", "tokens"),
)


@dataclass(frozen=True)
class Observed:
    """Images to look at.

    Attributes:
        images: (B, C, Y, X) as the network takes them, those that are shown.
        pixels: the same in [0, 1].
        probe: those that numbers are taken of.
        objects: bool (B, Y, X), masks of ``images``; None where there are none.
        remark: for the captions; which images these are.
        unlabelled: why no accuracy is asked; empty where it is.
    """

    images: Tensor
    pixels: Tensor
    probe: ProbeSet
    objects: Tensor | None = None
    remark: str = ""
    unlabelled: str = ""


@dataclass
class Observation:
    """Entries and numbers for the record, why pictures are left out, and remarks."""

    pictures: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, object]] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def observe(config: RunConfig, network: Network, folder: Path) -> Observation:
    """Write all pictures of ``network`` that can be made into ``folder``.

    Raises:
        ConfigError: the data hold no images that it takes.
        DataError: they are missing or damaged.
    """
    seen = observed_images(config, network)
    pictures, metrics = _of_shown(config, network, seen)
    if config.visualize.level is VisualizeLevel.full:
        control = build_model(config, network.classes) if network.trained else None
        found = full_gallery(network.model, seen.probe, control)
        pictures += found.pictures
        metrics |= found.metrics
    note = " ".join(part for part in ("" if network.trained else UNTRAINED, seen.remark) if part)
    stamp = "" if network.trained else "untrained weights"
    entries = save_pictures([annotated(one, note, stamp) for one in pictures], folder / FOLDER)
    remarks = [f"Weights: {network.weights}.", seen.remark, seen.unlabelled]
    return Observation(
        entries,
        metrics,
        left_out(config, network, seen, {picture.name for picture in pictures}),
        [remark for remark in remarks if remark],
    )


def observed_images(config: RunConfig, network: Network) -> Observed:
    """The images that ``config.data`` names, as the network was trained to see them."""
    if config.data.name is DataName.photographs:
        return _photographs(config, network)
    return _test_images(config, network) if config.data.name.trains else _voc(config, network)


def _photographs(config: RunConfig, network: Network) -> Observed:
    data, shown = config.data, config.visualize.images
    names, pixels = read_photographs(
        Path(data.root) if data.root else None, data.photographs, data.image_size, data.channels
    )
    probe = bare_probe_set(pixels[: config.visualize.probe_images], network.mean, network.std)
    more = " …" if len(names) > shown else ""
    return Observed(
        probe.images()[:shown],
        probe.shown()[:shown],
        probe,
        remark=f"Photographs: {', '.join(names[:shown])}{more}.",
        unlabelled=f"Photographs have no labels: {AGREEMENT}.",
    )


def _voc(config: RunConfig, network: Network) -> Observed:
    probe = voc_probe_set(
        Path(str(config.data.root)),
        config.visualize.probe_images,
        year=year_of(config.data.name),
        size=config.data.image_size,
        mean=network.mean,
        std=network.std,
    )
    shown = config.visualize.images
    return Observed(
        probe.images()[:shown],
        probe.shown()[:shown],
        probe,
        objects=probe.objects[:shown],
        unlabelled=f"Pascal VOC has several objects to an image and no label: {AGREEMENT}.",
    )


def _test_images(config: RunConfig, network: Network) -> Observed:
    own = config.task.run is not None and config.data == finished_run(Path(config.task.run)).data
    data = network.data if own and network.data is not None else load_data(config)
    assert isinstance(data, ImageData)  # sequences are refused beforehand
    images = data.test.__getitems__([SampleKey(0, i) for i in spread(config, data)]).images
    pixels = unnormalise(images, data.mean, data.std)
    probe = probe_set(image_spec(config), data, config.visualize.probe_images)
    if (network.mean, network.std) != (data.mean, data.std):
        images = _normalised(pixels, network)
        probe = replace(probe, mean=network.mean, std=network.std)
    if own or (config.task.run is None and data.num_classes == network.classes):
        return Observed(images, pixels, probe)
    why = f"The labels of {config.data.name} are not the network's classes: {AGREEMENT}."
    return Observed(images, pixels, replace(probe, labels=None), unlabelled=why)


def _of_shown(
    config: RunConfig, network: Network, seen: Observed
) -> tuple[list[Picture], dict[str, dict[str, object]]]:
    """What is drawn of the images that are shown, from one forward pass and two with gradients."""
    model, images, pixels = network.model, seen.images, seen.pixels
    full = config.visualize.level is VisualizeLevel.full
    classes = network.classes > NO_CLASSES
    captured = capture(model, images)
    if full:
        pictures = captured_gallery(captured, pixels)
        if classes:
            pictures.append(relevance_gallery(model, images, pixels))
        pictures += view_gallery(model, captured, images, pixels, seen.objects)
    else:
        pictures = brief_gallery(model, captured, images, pixels, classes=classes)
    masked = masked_weights(config)
    if masked is not None and network.data is not None:
        pictures.insert(0, reconstruction(config, network.data, images, masked))
    curves = Path(str(config.task.run)) / CURVES
    learned = dtn_table(read_rows(curves)) if config.task.run and curves.exists() else []
    pictures += dtn_gallery(model, learned, brief=not full)
    return pictures, gallery_metrics(captured)


def masked_weights(config: RunConfig) -> Path | None:
    """The masked image model that the run was pre-trained as; None where it has left none."""
    if not config.task.run or not config.pretrain.name.trains:
        return None
    try:
        return run_weights(Path(config.task.run), config, "pretrain")
    except ConfigError:
        return None


def left_out(
    config: RunConfig, network: Network, seen: Observed, made: set[str]
) -> list[dict[str, str]]:
    """Name, title and reason of every picture that could not be made."""
    full = config.visualize.level is VisualizeLevel.full
    light = ("reconstruction", "class_relevance")
    reasons = {
        "a masked image model": "no masked image model was pre-trained, or its weights are gone",
        "classes": "the weights hold no classifier",
        "filters": "no linear map leads from pixels to tokens, or no image shows an object before "
        "a background",
        "findings": "none of the statements can be asked of these images",
        "objects": "no image has the masks of two objects of three tokens each",
        "tokens": "the last block has fewer than four tokens",
    }
    return [
        {"name": name, "title": title, "reason": _why(reasons[need], name, network, seen)}
        for name, title, need in CONDITIONAL
        if name not in made and (full or name in light)
    ]


def _why(reason: str, name: str, network: Network, seen: Observed) -> str:
    if name == "faithfulness" and network.classes > NO_CLASSES:
        height, width = seen.probe.size
        return f"no coarse grid divides images of {height}x{width} pixels"
    return reason


def _normalised(pixels: Tensor, network: Network) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, std = torch.tensor(network.mean).view(shape), torch.tensor(network.std).view(shape)
    return (pixels - mean) / std
