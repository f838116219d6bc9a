"""A run's network as a plain timm state dict, for use outside this project."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from triptych.assembly import build_model
from triptych.choices import Family, NormName, TaskName
from triptych.composition import to_run_config
from triptych.config import ConfigError, RunConfig
from triptych.mim.weights import save_backbone
from triptych.records import RECORD, read_json

WHICH = ("task", "pretrained")
# Built of timm's own classes, under timm's names.
TIMM = (
    Family.vit,
    Family.swin,
    Family.pvt_v2,
    Family.twins_svt,
    Family.twins_pcpvt,
    Family.levit,
    Family.timm,
)
CLASSIFIERS = ("head.fc.weight", "head.weight", "head.linear.weight")


def export(run_folder: Path, path: Path, which: str = "task") -> str:
    """Write the weights of a run into the safetensors file ``path``; what was written, in words.

    ``task``: the fine-tuned network with its classifier. ``pretrained``: the backbone as
    pre-training left it, without a classifier (``num_classes=0`` in timm).

    Raises:
        ConfigError: the folder is no finished run, has no such weights, or they are not timm's.
        WeightsError: the file cannot be written.
    """
    config = _config_of(run_folder)
    name = "pretrained_backbone" if which == "pretrained" else "task"
    weights = run_folder / "checkpoints" / f"{name}.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"{run_folder} has no {weights.relative_to(run_folder)}: the run is not done, or "
            "nothing was pre-trained in it."
        )
    _check_is_timms(config)
    if which == "task" and config.task.name is TaskName.detection:
        raise ConfigError(
            f"{run_folder} trained a detector, which is none of timm's models; export pretrained, "
            "or take the detector's own weights from the run's checkpoints/."
        )
    state = load_file(weights)
    classes = next((len(state[key]) for key in CLASSIFIERS if key in state), 0)
    model = build_model(config, classes)
    model.load_state_dict(state)
    if which == "pretrained":
        model.reset_classifier(0)  # type: ignore[operator]
    save_backbone(model, path)
    return f"{path}: {_count(model):,} parameters of {config.backbone.name}, in timm's names"


def _config_of(run_folder: Path) -> RunConfig:
    record = run_folder / RECORD
    if not record.is_file():
        raise ConfigError(
            f"{run_folder} has no {RECORD}; give the folder of a run, for example "
            "outputs/compare/runs/<cell>."
        )
    return to_run_config(read_json(record)["config"])


def _check_is_timms(config: RunConfig) -> None:
    if config.backbone.family not in TIMM:
        raise ConfigError(
            f"backbone={config.backbone.name} is not one of timm's, so that there is no timm state "
            "dict of it; its own one lies in the run's checkpoints/."
        )
    if config.norm.name is not NormName.ln:
        raise ConfigError(
            f"norm={config.norm.name} has weights that timm does not know; only runs with norm=ln "
            "can be exported, the others' weights lie in the run's checkpoints/."
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
