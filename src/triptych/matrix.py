"""Which backbone, norm, pre-training and task go together: the README's tables, from the rules.

Every cell is asked of :func:`triptych.legality.check` with the smallest shipped backbone of each
family. The axes are the enumerations themselves, so a new member stands in the tables by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir

from triptych.choices import Family, NormName, PretrainName, TaskName, Weights
from triptych.composition import register_schema, to_run_config
from triptych.config import ConfigError, DataConfig, RunConfig
from triptych.legality import check
from triptych.paths import CONF

NAMES = {
    Family.vit: "ViT, DeiT",
    Family.swin: "Swin",
    Family.released_vit: "ViT of the DTN code",
    Family.t2t_vit: "T2T-ViT",
    Family.pvt: "PVT",
    Family.pvt_v2: "PVT v2",
    Family.twins_svt: "Twins-SVT",
    Family.twins_pcpvt: "Twins-PCPVT",
    Family.levit: "LeViT",
    Family.timm: "timm's own models of these kinds",
    Family.transformer: "Transformer",
    Family.bigbird: "BigBird",
    Family.reformer: "Reformer",
}
# The usual data of a table; others are asked where a task does without labels or images.
FIRST_DATA = ("mnist_5k", "listops_short", "scenes")
# Of other architectures the sites of the norms are not known.
TIMM_EXAMPLE = "deit_tiny_patch16_224"


@dataclass(frozen=True)
class Cell:
    """A backbone, a pre-training and a task: the norms that go with them, and why others do not."""

    legal: tuple[NormName, ...]
    reasons: tuple[str, ...]


Row = tuple[Cell, ...]


@cache
def _composed(*overrides: str) -> RunConfig:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_run_config(compose("config", overrides=list(overrides)))


@cache
def smallest(family: Family) -> str:
    """The shipped backbone of ``family`` for small images or short sequences."""
    options = {path.stem: yaml.safe_load(path.read_text()) for path in _options("backbone")}
    members = [name for name, plain in options.items() if plain.get("family") == family]
    return min(members, key=lambda name: (not name.endswith("_nano"), name))


def _options(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


@cache
def _parts() -> dict[tuple[str, str], Any]:
    """Group and option → that part of a run; an option of each group at once, to compose less."""
    options = {
        "backbone": [smallest(family) for family in Family],
        "norm": [str(norm) for norm in NormName],
        "pretrain": [str(pretrain) for pretrain in PretrainName],
        "data": [path.stem for path in _options("data")],
    }
    parts: dict[tuple[str, str], Any] = {}
    for names in zip_longest(*options.values()):
        chosen = {group: name for group, name in zip(options, names, strict=True) if name}
        config = _composed(*(f"{group}={name}" for group, name in chosen.items()))
        parts |= {(group, name): getattr(config, group) for group, name in chosen.items()}
    return parts


@cache
def _data() -> tuple[DataConfig, ...]:
    names = [path.stem for path in _options("data")]
    names = [*FIRST_DATA, *(name for name in names if name not in FIRST_DATA)]
    every = [_parts()["data", name] for name in names]
    return tuple(replace(data, root=data.root or "/data/images") for data in every)


def configuration(
    family: Family, norm: NormName, pretrain: PretrainName, task: TaskName
) -> RunConfig:
    """The cell as a run, on the data of a plain cell of its backbone and task."""
    config = _cell(family, norm, pretrain, task)
    return replace(config, data=_home(family, task))


@cache
def _home(family: Family, task: TaskName) -> DataConfig:
    plain = _cell(family, NormName.ln, PretrainName.none, task)
    fitting = [data for data in _data() if data.name.holds_sequences == family.reads_sequences]
    legal = (data for data in fitting if _refusal(replace(plain, data=data)) is None)
    return next(legal, fitting[0])


@cache
def _cell(family: Family, norm: NormName, pretrain: PretrainName, task: TaskName) -> RunConfig:
    base = _composed(f"task={task}")
    if task is TaskName.visualization and pretrain is not PretrainName.checkpoint:
        base = replace(base, task=replace(base.task, weights=Weights.untrained))
    before = _parts()["pretrain", pretrain]
    if pretrain is PretrainName.checkpoint:
        before = replace(before, checkpoint="weights.pth")
    backbone = _parts()["backbone", smallest(family)]
    if family is Family.timm:
        backbone = replace(backbone, timm_name=TIMM_EXAMPLE)
    normalizer = _parts()["norm", norm]
    return replace(base, backbone=backbone, norm=normalizer, pretrain=before)


def _refusal(config: RunConfig) -> str | None:
    try:
        check(config)
    except ConfigError as error:
        return str(error)
    return None


@cache
def cell(family: Family, pretrain: PretrainName, task: TaskName) -> Cell:
    """What the rules say of all norms."""
    legal, reasons = [], []
    for norm in NormName:
        config = configuration(family, norm, pretrain, task)
        refusal = _refusal(config)
        if refusal is None:
            legal.append(norm)
        else:
            reasons.append(_general(refusal, config))
    return Cell(tuple(legal), tuple(dict.fromkeys(reasons)))


def _general(refusal: str, config: RunConfig) -> str:
    """A refusal without the names of the one example that was asked."""
    for word, name in (
        ("backbone", config.backbone.name),
        ("norm", config.norm.name),
        ("pre-training", config.pretrain.name),
        ("task", config.task.name),
    ):
        key = "pretrain" if word == "pre-training" else word
        refusal = re.sub(rf"\b{key}={name}\b", f"this {word}", refusal)
    return refusal[0].upper() + refusal[1:]


def table() -> dict[TaskName, dict[Family, Row]]:
    """Every cell: a row of cells, one for each pre-training, of each backbone of each task."""
    return {
        task: {family: tuple(cell(family, pre, task) for pre in PretrainName) for family in Family}
        for task in TaskName
    }


def markdown() -> str:
    """The tables, one for all tasks that have the same, and the reasons below them."""
    cells, notes = table(), Notes()
    parts = []
    tasks = sorted(TaskName, key=lambda task: _order(task, cells))
    for _, group in groupby(tasks, key=lambda task: _order(task, cells)[0]):
        same = list(group)
        parts.append(_table(same, cells[same[0]], notes))
    legal = sum(len(c.legal) for _, c in _cells(cells))
    whole = sum(len(NormName) for _ in _cells(cells))
    norms = ", ".join(f"`{norm}`" for norm in NormName)
    head = (
        f"✓: with each of the norms {norms}; –: with none. {legal:,} of {whole:,} combinations of "
        f"backbone, norm, pre-training and task are legal. Asked of the smallest backbone of each "
        f"family (of timm, `{TIMM_EXAMPLE}`) at its usual image size; written by "
        "`python -m triptych matrix`."
    )
    return "\n\n".join([head, *parts, notes.markdown()])


def _order(task: TaskName, cells: dict[TaskName, dict[Family, Row]]) -> tuple[int, int]:
    tasks = list(TaskName)
    first = next(index for index, other in enumerate(tasks) if cells[other] == cells[task])
    return first, tasks.index(task)


def _cells(cells: dict[TaskName, dict[Family, Row]]) -> Iterator[tuple[TaskName, Cell]]:
    for task, rows in cells.items():
        for row in rows.values():
            yield from ((task, one) for one in row)


class Notes:
    """Reasons in the order in which they are met, each with a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def marks(self, reasons: tuple[str, ...]) -> str:
        numbers = [self.numbers.setdefault(text, len(self.numbers) + 1) for text in reasons]
        return f"<sup>{','.join(map(str, numbers))}</sup>" if numbers else ""

    def markdown(self) -> str:
        return "\n".join(f"{number}. {text}" for text, number in self.numbers.items())


def _table(tasks: list[TaskName], rows: dict[Family, Row], notes: Notes) -> str:
    title = ", ".join(f"`task={task}`" for task in tasks)
    head = " | ".join(f"`{pre}`" for pre in PretrainName)
    lines = [f"**{title}**", "", f"| backbone | {head} |", "|---" * (1 + len(PretrainName)) + "|"]
    merged: dict[Row, list[str]] = {}
    for family, row in rows.items():
        merged.setdefault(row, []).append(NAMES.get(family, str(family)))
    for row, names in merged.items():
        shown = " | ".join(_shown(one, notes) for one in row)
        lines.append(f"| {', '.join(names)} | {shown} |")
    return "\n".join(lines)


def _shown(one: Cell, notes: Notes) -> str:
    marks = notes.marks(one.reasons)
    if len(one.legal) == len(NormName):
        return "✓"
    if not one.legal:
        return f"–{marks}"
    out = [str(norm) for norm in NormName if norm not in one.legal]
    return f"✓ but {', '.join(out)}{marks}"


def write(readme: Path) -> None:
    """Put the tables between the markers of ``readme``.

    Raises:
        ConfigError: the markers are not there.
    """
    from triptych.records import write_atomically

    write_atomically(readme, with_tables(readme.read_text(), markdown()))


def with_tables(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers of the matrix."""
    start, end = "<!-- matrix:start -->", "<!-- matrix:end -->"
    if start not in page or end not in page:
        raise ConfigError(f"README.md has no place for the matrix; give it {start} and {end}.")
    before, rest = page.split(start, 1)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}"
