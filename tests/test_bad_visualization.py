"""What task=visualization refuses before anything is computed, each in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.composition import to_plain
from triptych.config import ConfigError
from triptych.data.errors import DataError
from triptych.hydra_app import compose_run
from triptych.records import write_json

LOOK = "task=visualization"
RANDOM = "task.weights=untrained"


def refusal(*overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as failure:
        compose_run(list(overrides))
    return str(failure.value)


def record(folder: Path, *overrides: str, status: str = "done", weights: bool = True) -> Path:
    """A run's folder with its record, and a file in the place of its weights."""
    config = compose_run([*overrides, f"output_dir={folder.parent}"])
    write_json(folder / "record.json", {"status": status, "config": to_plain(config)})
    if weights:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "task.safetensors").write_bytes(b"")
    return folder


def test_a_run_settles_network_and_data(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "norm=dtn", "pretrain=greenmim", "seed=3", "data=digits")
    config = compose_run([LOOK, f"task.run={run}"])
    assert (config.norm.name, config.pretrain.name, config.seed) == ("dtn", "greenmim", 3)
    assert (config.data.name, config.data.image_size, config.data.channels) == ("digits", 32, 1)
    assert (config.visualize.level, config.measure.enabled) == ("full", False)
    other = compose_run([LOOK, f"task.run={run}", "data=photographs", "visualize=light"])
    assert (other.data.name, other.data.image_size, other.data.channels) == ("photographs", 32, 1)
    assert other.visualize.level == "light"


def test_without_a_run_photographs_have_the_size_that_timm_notes() -> None:
    assert compose_run([LOOK, RANDOM]).data.image_size == 224
    large = [LOOK, "backbone=timm", "backbone.timm_name=vit_small_patch16_384"]
    assert compose_run(large).data.image_size == 384
    assert compose_run([*large, "data=photographs", "data.image_size=96"]).data.image_size == 96


@pytest.mark.parametrize("override", ["norm=ln", "backbone=vit_nano", "seed=1", "pretrain=none"])
def test_what_the_run_settles_cannot_be_given_beside(tmp_path: Path, override: str) -> None:
    run = record(tmp_path / "run")
    assert refusal(LOOK, f"task.run={run}", override) == (
        f"{override} has no meaning with task.run={run}: the network is the run's; leave it out."
    )


def test_a_run_that_is_missing_or_not_done(tmp_path: Path) -> None:
    assert refusal(LOOK, f"task.run={tmp_path}") == (
        f"task.run={tmp_path} has no record.json; give the folder of a run, for example "
        "outputs/compare/runs/<cell>."
    )
    failed = record(tmp_path / "failed", status="failed")
    assert refusal(LOOK, f"task.run={failed}") == (
        f"task.run={failed} is failed, not done; give its command again first, or another run."
    )


def test_a_run_whose_weights_are_gone(tmp_path: Path) -> None:
    run = record(tmp_path / "run", weights=False)
    told = refusal(LOOK, f"task.run={run}")
    assert told.startswith(f"task.run={run} has no weights: neither {run}/checkpoints/task.safe")
    assert told.endswith("is there; train it again, or give another run.")


@pytest.mark.parametrize("task", ["knn", "visualization"])
def test_a_run_that_trained_no_network(tmp_path: Path, task: str) -> None:
    run = record(tmp_path / "run", f"task={task}", *([RANDOM] if task == "visualization" else []))
    assert refusal(LOOK, f"task.run={run}") == (
        f"task.run={run} trained no network: its task is {task}; give a run of task=classification."
    )


def test_a_run_of_sequences(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "task=listops", "data=listops_short", "backbone=bigbird_nano")
    assert refusal(LOOK, f"task.run={run}") == (
        "task=visualization cannot be used with data=listops_short; use listops."
    )


def test_keys_of_the_runs_own_data(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    assert refusal(LOOK, f"task.run={run}", "data.test_fraction=0.5") == (
        f"data.test_fraction=0.5 has no meaning for the own data of task.run={run}; leave it out, "
        "or name the data, for example data=photographs."
    )
    assert refusal(LOOK, f"task.run={run}", "data=photographs", "data.image_size=64") == (
        f"data.image_size=64 does not fit task.run={run}, whose network takes 32; leave it out."
    )


def test_weights_must_be_named() -> None:
    assert refusal(LOOK) == (
        "task=visualization needs weights for backbone=swin_nano: give task.run=FOLDER (a "
        "finished run) or task.checkpoint=FILE, or ask for task.weights=untrained."
    )
    timm = ["backbone=timm", "backbone.timm_name=vit_tiny_patch16_224"]
    assert refusal(LOOK, *timm, "norm=dtn") == (
        "norm=dtn does not fit the published weights of vit_tiny_patch16_224, which are for "
        "norm=ln; use that, task.checkpoint=FILE, or task.weights=untrained."
    )


def test_weights_are_named_once(tmp_path: Path) -> None:
    run, file = record(tmp_path / "run"), tmp_path / "a.safetensors"
    file.write_bytes(b"")
    assert refusal(LOOK, f"task.run={run}", f"task.checkpoint={file}") == (
        f"task.run={run} and task.checkpoint={file} both say what the weights are; give one."
    )
    assert refusal(LOOK, f"task.checkpoint={file}", RANDOM) == (
        f"task.checkpoint={file} and task.weights=untrained both say what the weights are; give "
        "one."
    )


def test_a_file_that_is_not_there() -> None:
    assert refusal(LOOK, "task.checkpoint=/no/file.pth") == (
        "task.checkpoint=/no/file.pth is no file; give a .safetensors file, "
        "one of torch.save, or the .npz of an original ViT."
    )


def test_nothing_is_pretrained() -> None:
    assert refusal(LOOK, "pretrain=greenmim", RANDOM) == (
        "pretrain=greenmim cannot be used with task=visualization, which trains nothing; give "
        "task.run, the folder of a run that was pre-trained so, or use pretrain=none."
    )


def test_keys_without_meaning() -> None:
    assert refusal(LOOK, RANDOM, "task.epochs=3") == (
        "task.epochs=3 has no meaning for task=visualization, which trains nothing; leave it 10."
    )
    assert refusal("task.run=x") == (
        "task.run=x has no meaning for task=classification; use task=visualization."
    )
    assert refusal(RANDOM) == (
        "task.weights=untrained has no meaning for task=classification; use task=visualization."
    )
    assert refusal("task.checkpoint=x").startswith(
        "task.checkpoint=x has no meaning for task=classification, which trains the classifier "
    )
    assert refusal(LOOK, RANDOM, "visualize=none") == (
        "visualize=none leaves nothing to do for task=visualization; use full or light."
    )
    assert refusal(LOOK, RANDOM, "measure=default") == (
        "measure.enabled=True has no meaning for task=visualization: cost is measured where a "
        "network is trained; use measure=none."
    )


@pytest.mark.parametrize("name", ["default", "photographs", "voc_2009"])
def test_data_without_labels_train_nothing(name: str) -> None:
    assert refusal(f"data={name}") == (
        f"data={name} has no labels, so that task=classification cannot be trained on it; use "
        "other data, or task=visualization."
    )


def test_pascal_voc_needs_a_folder_and_a_network_in_colour() -> None:
    assert refusal(LOOK, RANDOM, "data=voc_2012") == (
        "data.root has no value; data=voc_2012 needs the folder that holds VOCdevkit, for example "
        "data.root=/data/voc."
    )
    assert refusal(LOOK, RANDOM, "data=voc_2012", "data.root=/data/voc", "data.channels=1") == (
        "data=voc_2012 has images in colour, but the network takes 1 channel(s); use "
        "data=photographs, which can be grey."
    )


def test_photographs_that_are_not_there(tmp_path: Path) -> None:
    assert "did you mean chelsea?" in refusal(LOOK, RANDOM, "data.photographs=[chelsae]")
    assert refusal(LOOK, RANDOM, f"data.root={tmp_path}/no") == (
        f"there is no folder {tmp_path}/no with photographs"
    )
    assert refusal("data.photographs=[coffee]") == (
        "data.photographs=['coffee'] has no meaning for data=mnist_5k; leave it empty or use "
        "data=photographs."
    )
    assert refusal(LOOK, RANDOM, "data.channels=2") == (
        "data.channels=2 must be 1 or 3 for data=photographs."
    )
