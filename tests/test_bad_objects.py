"""Images with objects in the configuration: what they become, and what cannot go together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triptych.choices import TaskName
from triptych.config import ConfigError
from triptych.hydra_app import compose_run

COCO = ["task=detection", "data=coco_folder", "data.root=/data/coco"]
SCENES = ["task=detection", "data=scenes"]
SMALL = ["data.image_size=64", "data.short_side=48", "data.long_side=64"]

BAD = [
    (
        ["task=detection", "data=mnist_5k"],
        "data=mnist_5k has no boxes, so that task=detection cannot be trained on it; legal are "
        "scenes, coco.",
    ),
    (
        [*COCO, "task=classification"],
        "task=classification cannot be used with data=coco, whose images have objects but no label "
        "of their own; use task=detection.",
    ),
    (
        [*COCO, "pretrain=standard"],
        "pretrain=standard cannot be trained on data=coco, whose images differ in size; pre-train "
        "on other data and give the file with pretrain=checkpoint.",
    ),
    (
        [*COCO, "data.train_fraction=0.5"],
        "data.train_fraction=0.5 has no meaning for data=coco; leave it 1.0.",
    ),
    (
        [*SCENES, "data.folders=[a,b]"],
        "data.folders=['a', 'b'] has no meaning for data=scenes; leave it ['train2017', "
        "'val2017'].",
    ),
    (
        ["data.training_sides=[480]"],
        "data.training_sides=[480] has no meaning for data=mnist_5k; leave it [].",
    ),
    (
        [*SCENES, "data.crop_padding=2"],
        "data.crop_padding=2 has no meaning for task=detection; leave it 0.",
    ),
    (
        COCO[:2],
        "data.root has no value; data=coco needs the folder that holds annotations/, train2017/ "
        "and val2017/, for example data.root=/data/coco.",
    ),
    ([*COCO, "data.channels=2"], "data.channels=2 must be 1 or 3 for data=coco."),
    (
        [*COCO, "data.annotations=[a.json]"],
        "data.annotations=['a.json'] must be two names, that of training and that of testing.",
    ),
    (
        [*COCO, "data.image_size=1280"],
        "data.long_side=1333 does not fit on a canvas of data.image_size=1280 pixels; give a "
        "canvas at least as large.",
    ),
    (
        [*COCO, "data.training_sides=[480,2000]"],
        "data.training_sides=2000 must be at most data.long_side=1333.",
    ),
    (
        [*COCO, "data.short_side=0"],
        "data.short_side=0 is out of range: it must be 1 or more.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD)
def test_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(sentence) + "$"):
        compose_run(overrides)


def test_the_folder_of_the_configuration_is_loaded(coco_root: Path) -> None:
    from triptych.assembly import load_detection

    options = [*SMALL, "data.training_sides=[32,48]", f"data.root={coco_root}"]
    data = load_detection(compose_run([*COCO, *options]))
    assert (len(data.train), len(data.test), data.num_classes) == (8, 6, 10)
    assert (data.canvas, data.flip, data.channels) == ((64, 64), 0.5, 3)
    assert (data.resize.short_side, data.resize.long_side) == (48, 64)
    assert data.resize.training_sides == (32, 48)


def test_scenes_of_the_configuration_are_those_of_pretraining() -> None:
    from triptych.assembly import load_data, load_detection

    config = compose_run([*SCENES, "data.scenes=40", "pretrain=standard"])
    data, images = load_detection(config), load_data(config)
    assert config.task.name is TaskName.detection
    assert (len(data.train), len(data.test)) == (len(images.train), len(images.test)) == (32, 8)
    assert (data.mean, data.std) == (images.mean, images.std)  # type: ignore[union-attr]
    assert (data.canvas, data.flip) == ((64, 64), 0.0)


def test_the_official_folder_is_expected_whole() -> None:
    data = compose_run(["task=detection", "data=coco", "data.root=/data/coco"]).data
    assert (data.expected_classes, data.expected_train, data.expected_test) == (80, 118287, 5000)
    assert (data.image_size, data.short_side, data.long_side) == (1344, 800, 1333)
    multiscale = compose_run(["task=detection", "data=coco_multiscale", "data.root=/data/coco"])
    assert multiscale.data.training_sides == tuple(range(480, 801, 32))
