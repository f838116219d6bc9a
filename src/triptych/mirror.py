"""The mirror of a run in W&B: scalars on our own step axes, config, pictures, tables.

Everything shown here is on disk first; the mirror can be thrown away and made again. Offline is
the default: no account, no network, no waiting.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from triptych.choices import WandbMode
from triptych.config import LoggerConfig
from triptych.tasks.metric_log import DTN_SECTION

_MODE: dict[WandbMode, Literal["offline", "online"]] = {
    WandbMode.offline: "offline",
    WandbMode.online: "online",
}


class WandbMirror:
    """One W&B run for one process, grouped by study; a mirror switched off does nothing."""

    def __init__(
        self, settings: LoggerConfig, folder: Path, *, study: str, cell: str, config: dict[str, Any]
    ) -> None:
        self.run: Any = None
        if settings.wandb is WandbMode.off:
            return
        import wandb

        if settings.wandb is WandbMode.offline:
            # An offline run cannot be resumed; an unfinished one is written again from disk.
            shutil.rmtree(folder / "wandb", ignore_errors=True)
        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=study,
            name=cell,
            id=cell[-60:],
            resume="allow" if settings.wandb is WandbMode.online else None,
            mode=_MODE[settings.wandb],
            dir=str(folder),
            config=config,
            tags=[str(config[part]["name"]) for part in ("backbone", "norm", "pretrain", "data")],
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, init_timeout=60
            ),
        )
        for stage in ("pretrain", "task"):
            self.run.define_metric(f"{stage}/step", hidden=True)
            for prefix in (stage, f"{DTN_SECTION}/{stage}"):
                self.run.define_metric(f"{prefix}/*", step_metric=f"{stage}/step")

    def __enter__(self) -> WandbMirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)

    def listen(self, rows: list[dict[str, Any]]) -> None:
        """Log curve rows, all numbers of one step together."""
        if self.run is None:
            return
        steps: dict[tuple[str, int], dict[str, float]] = {}
        for row in rows:
            stage = row["stage"]
            values = steps.setdefault((stage, row["step"]), {f"{stage}/epoch": row["epoch"]})
            values[curve_key(stage, row["name"])] = row["value"]
        for (stage, step), values in steps.items():
            self.run.log({f"{stage}/step": step} | values)

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Put the record's metrics into the summary, and log its pictures and their tables."""
        if self.run is None:
            return
        import wandb

        for name, metric in record["metrics"].items():
            self.run.summary[name] = metric["value"]
        for left_out in record.get("left_out", ()):
            self.run.summary[f"left_out/{left_out['name']}"] = left_out["reason"]
        panels: dict[str, Any] = {}
        for picture in record["pictures"]:
            name = f"pictures/{picture['name']}"
            panels[name] = wandb.Image(str(folder / picture["file"]), caption=picture["caption"])
            panels[f"{name}_numbers"] = _table(folder / picture["numbers"])
        if panels:
            self.run.log(panels)


def curve_key(stage: str, name: str) -> str:
    """The key of a curve: ``pretrain/train/loss``.

    The many curves from inside DTN have a section of their own, ``dtn/pretrain/...``: a dashboard
    makes one of all keys with the same first word.
    """
    section, _, rest = name.partition("/")
    return f"{section}/{stage}/{rest}" if section == DTN_SECTION else f"{stage}/{name}"


def _table(path: Path) -> Any:
    import wandb

    with path.open(newline="") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    return wandb.Table(columns=list[str | int](header), data=rows)
