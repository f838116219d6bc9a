"""How far a run is: one small structure, shown by the terminal or read by the launcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.records import write_atomically

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """``share`` of the stage that is done; ``seconds_left`` is None before it is known."""

    stage: str
    share: float = 0.0
    detail: str = ""
    seconds_left: float | None = None


ProgressSink = Callable[[Progress], None]


class ProgressFile:
    """Writes the newest progress to ``folder``/progress.json, at most twice a second."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PROGRESS
        self.stage = ""
        self.written = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.stage == self.stage and time.monotonic() - self.written < 0.5:
            return
        import json

        write_atomically(self.path, json.dumps(asdict(progress)))
        self.stage, self.written = progress.stage, time.monotonic()


def read_progress(folder: Path) -> Progress | None:
    """The newest progress of the run in ``folder``, or None."""
    from triptych.records import read_json

    path = folder / PROGRESS
    if not path.exists():
        return None
    plain: dict[str, Any] = read_json(path)
    return Progress(**plain)
