"""The schema and every configuration that is shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from triptych.composition import groups, to_plain, to_run_config
from triptych.config import RunConfig
from triptych.hydra_app import compose_run, swept_by_study
from triptych.paths import CONF, EXPERIMENTS
from triptych.stages import cell_key, cell_name, pretrain_stage, task_stage

# What a group option needs beside its name to make a whole run.
LISTOPS = ("listops", "listops_short")
LOOKING = ["task=visualization", "task.weights=untrained"]
BESIDE = {
    "backbone/timm": ["backbone.timm_name=deit_tiny_patch16_224", "data.image_size=224"],
    **{
        f"data/{name}": ["data.root=/nowhere"]
        for name in ("image_folder", "imagenet", "imagenet_tar", "image_shards")
    },
    "data/imagenet_c": ["task=robustness", "data.root=/nowhere", "data.corrupted_root=/nowhere"],
    **{f"data/{name}": [*LOOKING, "data.root=/nowhere"] for name in ("voc_2009", "voc_2012")},
    **{f"data/{name}": LOOKING for name in ("default", "photographs")},
    **{
        f"data/{name}": ["data.root=/nowhere", "task=detection"]
        for name in ("coco", "coco_folder", "coco_multiscale")
    },
    **{
        f"task/{name}": ["data=scenes"]
        for name in (
            "detection",
            "detection_retinanet_1x",
            "detection_mask_rcnn_1x",
            "detection_mask_rcnn_3x",
        )
    },
    "task/visualization": ["task.weights=untrained"],
    "trainer/gpu": ["trainer.accelerator=gpu"],
    "pretrain/mae": ["backbone=vit_nano"],
    "pretrain/mae_vit_base": ["backbone=vit_nano"],
    "pretrain/checkpoint": ["pretrain.checkpoint=weights.pth"],
    **{f"data/{name}": ["backbone=bigbird_nano", "task=listops"] for name in LISTOPS},
    **{
        f"task/{name}": ["backbone=bigbird_nano", "data=listops_short"]
        for name in ("listops", "listops_published")
    },
    **{
        f"backbone/{family}_{size}": ["data=listops", "task=listops"]
        for family in ("transformer", "bigbird", "reformer")
        for size in ("nano", "listops")
    },
}
SHIPPED = sorted(
    f"{path.parent.name}/{path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name
)


@pytest.mark.parametrize("option", SHIPPED)
def test_every_shipped_option_composes(option: str) -> None:
    group, name = option.split("/")
    beside = list(BESIDE.get(option, []))
    if group == "backbone":
        images = not name.endswith(("nano", "_listops"))
        beside += ["data.image_size=224"] if images else []
    compose_run([f"{group}={name}", *beside])


def test_every_group_has_a_schema_and_a_folder() -> None:
    assert set(groups()) == {path.parent.name for path in CONF.glob("*/*.yaml")}


@pytest.mark.parametrize("study", sorted(EXPERIMENTS.glob("*/study.yaml")), ids=str)
def test_every_study_composes_in_all_its_cells(study: Path) -> None:
    name = study.parent.name
    grid = yaml.safe_load(study.read_text())["hydra"]["sweeper"]["params"]
    first = [f"{key}={str(values).split(',')[0]}" for key, values in grid.items()]
    config = compose_run([f"+{name}=study", *first])
    assert config.study == name
    asked = [f"+{name}=study"]
    assert compose_run([*asked, *swept_by_study(asked)]) == config  # what `make experiment` checks
    for line in ("Claim:", "Command:", "Hardware:", "Minutes:", "Expected:"):
        assert line in study.read_text()


def test_a_configuration_cannot_be_changed() -> None:
    config = compose_run([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.task.epochs = 1  # type: ignore[misc]


def test_plain_form_gives_the_configuration_back() -> None:
    config = compose_run(["norm=dtn", "pretrain=greenmim", "data.random_resized_crop=[0.2,1.0]"])
    assert to_run_config(to_plain(config)) == config


def _leaves(config: object, prefix: str = "") -> list[str]:
    names = []
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        nested = dataclasses.is_dataclass(value)
        names += _leaves(value, f"{prefix}{item.name}.") if nested else [prefix + item.name]
    return names


def test_every_key_can_be_overridden() -> None:
    """Each key, given its own value again on the command line, is accepted and changes nothing."""
    base = compose_run(["norm=dtn", "pretrain=greenmim"])
    overrides = []
    for key in _leaves(base):
        value: object = base
        for part in key.split("."):
            value = getattr(value, part)
        text = "null" if value is None else str(list(value) if isinstance(value, tuple) else value)
        overrides.append(f"{key}={text.replace(' ', '')}")
    assert compose_run(["norm=dtn", "pretrain=greenmim", *overrides]) == base


# Keys: a stage is made again when, and only when, its product could be another.

SAME_PRETRAINING = ["task.epochs=3", "visualize=none", "study=other", "data.workers=2"]
OTHER_PRETRAINING = [
    "seed=1",
    "pretrain.epochs=3",
    "norm=ln",
    "data=digits",
    "backbone.depths=[1,1]",
]


@pytest.mark.parametrize("override", SAME_PRETRAINING)
def test_pretraining_is_shared(override: str) -> None:
    base = compose_run(["norm=dtn", "pretrain=greenmim"])
    other = compose_run(["norm=dtn", "pretrain=greenmim", override])
    assert pretrain_stage(base).key == pretrain_stage(other).key


@pytest.mark.parametrize("override", OTHER_PRETRAINING)
def test_pretraining_is_made_again(override: str) -> None:
    base = compose_run(["norm=dtn", "pretrain=greenmim"])
    other = compose_run(["norm=dtn", "pretrain=greenmim", override])
    assert pretrain_stage(base).key != pretrain_stage(other).key
    assert task_stage(base).key != task_stage(other).key
    assert cell_name(base) != cell_name(other)


def test_options_without_effect_do_not_change_a_key() -> None:
    base = compose_run(["norm=ln", "pretrain=none"])
    for override in (
        "norm.form=paper",
        "norm.init=released",
        "pretrain.learning_rate=1",
        "backbone.name=mine",
    ):
        other = compose_run(["norm=ln", "pretrain=none", override])
        assert task_stage(base).key == task_stage(other).key


def test_where_output_goes_is_not_part_of_the_key() -> None:
    here, there = compose_run([]), compose_run(["output_dir=/elsewhere", "study=mine"])
    assert cell_key(here) == cell_key(there)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_seeds_have_cells_of_their_own(first: int, second: int) -> None:
    one = dataclasses.replace(_composed(), seed=first)
    two = dataclasses.replace(_composed(), seed=second)
    assert (cell_name(one) == cell_name(two)) == (first == second)


_COMPOSED: list[RunConfig] = []


def _composed() -> RunConfig:
    if not _COMPOSED:
        _COMPOSED.append(compose_run([]))
    return _COMPOSED[0]
