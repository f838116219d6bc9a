"""What ``task=visualization`` looks at, settled before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from triptych.choices import DataName, Family, TaskName
from triptych.composition import to_run_config
from triptych.config import ConfigError, DataConfig, RunConfig
from triptych.records import RECORD, read_record
from triptych.stages import task_stage

CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
# Groups and keys that belong to the network: with task.run they are those of the run.
OF_THE_RUN = ("backbone", "norm", "pretrain", "seed")
PLAIN_SIZE, PLAIN_CHANNELS = 224, 3
# What conf/data/default.yaml says.
UNSAID = DataConfig(name=DataName.default, image_size=0, channels=0)


def settle(config: RunConfig) -> RunConfig:
    """The configuration with what ``task=visualization`` leaves open.

    With ``task.run`` the network is that of the run and ``data=default`` its data; other data take
    its image size and channels. Without, ``data=default`` are photographs. Their size, where none
    is given, is that which a timm model was trained on, or 224 pixels. Other tasks stay as they
    are, and so does what has been settled.

    Raises:
        ConfigError: the run or the file is not there, or the run is not done.
        DataError: the photographs are not there.
    """
    if config.task.name is not TaskName.visualization:
        return config
    if config.task.checkpoint and not Path(config.task.checkpoint).is_file():
        raise ConfigError(
            f"task.checkpoint={config.task.checkpoint} is no file; give a .safetensors file, "
            "one of torch.save, or the .npz of an original ViT."
        )
    settled = _of_run(config) if config.task.run else _on_its_own(config)
    if settled.data.name is DataName.photographs:
        from triptych.data.photographs import photograph_names  # with torch

        root = settled.data.root
        photograph_names(Path(root) if root else None, settled.data.photographs)
    return settled


def year_of(name: DataName) -> str:
    """``2009`` of voc_2009."""
    return name.rpartition("_")[2]


def refuse_keys_of_the_run(config: RunConfig, overrides: Sequence[str]) -> None:
    """With ``task.run``, refuse ``overrides`` of what the run has settled.

    Raises:
        ConfigError: there is one.
    """
    for override in overrides if config.task.run else ():
        key = override.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in OF_THE_RUN:
            raise ConfigError(
                f"{override} has no meaning with task.run={config.task.run}: the network is the "
                "run's; leave it out."
            )


def finished_run(folder: Path) -> RunConfig:
    """The configuration of the finished run in ``folder``.

    Raises:
        ConfigError: there is none, it is not done, or it trained no network.
    """
    record = read_record(folder)
    if record is None:
        raise ConfigError(
            f"task.run={folder} has no {RECORD}; give the folder of a run, for example "
            "outputs/compare/runs/<cell>."
        )
    if record["status"] != "done":
        raise ConfigError(
            f"task.run={folder} is {record['status']}, not done; give its command again first, or "
            "another run."
        )
    run = to_run_config(record["config"])
    if not run.task.name.trains or run.task.name.probes:
        raise ConfigError(
            f"task.run={folder} trained no network: its task is {run.task.name}; give a run of "
            "task=classification."
        )
    if run.task.name is TaskName.detection:
        raise ConfigError(
            f"task.run={folder} trained a detector, whose answers are boxes; give a run of "
            "task=classification."
        )
    return run


def run_weights(folder: Path, run: RunConfig, name: str = "task") -> Path:
    """The weights that the run in ``folder`` left of its network; of other ``name``, see there.

    Raises:
        ConfigError: they are neither beside its record nor in its stage.
    """
    beside = folder / CHECKPOINTS / f"{name}.safetensors"
    # Records made before weights stood beside them have only their stage's.
    places = [beside, task_stage(run).folder / WEIGHTS] if name == "task" else [beside]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"task.run={folder} has no weights: neither {' nor '.join(map(str, places))} is there; "
        "train it again, or give another run."
    )


def _of_run(config: RunConfig) -> RunConfig:
    folder = Path(str(config.task.run))
    run = finished_run(folder)
    run_weights(folder, run)
    return replace(
        config,
        seed=run.seed,
        backbone=run.backbone,
        norm=run.norm,
        pretrain=run.pretrain,
        data=_data_for(run, config.data, folder),
    )


def _data_for(run: RunConfig, data: DataConfig, folder: Path) -> DataConfig:
    """``data`` as the network of ``run`` takes them; its own for ``data=default``."""
    if data.name is DataName.default:
        for key, value in vars(data).items():
            if value != getattr(UNSAID, key):
                raise ConfigError(
                    f"data.{key}={value} has no meaning for the own data of task.run={folder}; "
                    "leave it out, or name the data, for example data=photographs."
                )
        return run.data
    if not data.name.trains:
        for key in ("image_size", "channels"):
            given, own = getattr(data, key), getattr(run.data, key)
            if given not in (0, own):
                raise ConfigError(
                    f"data.{key}={given} does not fit task.run={folder}, whose network takes {own};"
                    " leave it out."
                )
    return replace(data, image_size=run.data.image_size, channels=run.data.channels)


def _on_its_own(config: RunConfig) -> RunConfig:
    data = config.data
    if data.name is DataName.default:
        data = replace(data, name=DataName.photographs)
    if data.image_size == 0:
        data = replace(data, image_size=_usual_size(config))
    if data.channels == 0:
        data = replace(data, channels=PLAIN_CHANNELS)
    return replace(config, data=data)


def _usual_size(config: RunConfig) -> int:
    bone = config.backbone
    if bone.family is not Family.timm or not bone.timm_name:
        return PLAIN_SIZE
    import timm

    if not timm.is_model(bone.timm_name):
        return PLAIN_SIZE  # refused with the nearest names when it is built
    known = timm.models.get_pretrained_cfg(bone.timm_name)
    return int(known.input_size[1]) if known else PLAIN_SIZE
