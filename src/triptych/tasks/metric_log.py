"""Learning curves on disk: one JSON line for each number, the authority that W&B mirrors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.records import RecordError, write_atomically

Row = dict[str, Any]
Listener = Callable[[list[Row]], None]
# First word of the names of numbers from inside DTN layers: a section of many curves.
DTN_SECTION = "dtn"


class MetricLog:
    """Appends rows {stage, epoch, step, name, value}; listeners get every row once."""

    def __init__(self, path: Path, stage: str, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.stage = stage
        self.listeners = listeners

    def append(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step."""
        rows = [
            {"stage": self.stage, "epoch": epoch, "step": step, "name": name, "value": value}
            for name, value in values.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self._tell(rows)

    def rewind(self, epoch: int) -> None:
        """Forget ``epoch`` and what follows: the checkpoint to go on from will log it again."""
        kept = [row for row in self.rows() if row["epoch"] < epoch]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def replay(self) -> None:
        """Hand the listeners what is on disk already."""
        self._tell(self.rows())

    def rows(self) -> list[Row]:
        return read_rows(self.path)

    def _tell(self, rows: list[Row]) -> None:
        for listener in self.listeners:
            listener(rows)


class SilentLog(MetricLog):
    """The log of a process that trains along: another one writes."""

    def append(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Write nothing."""

    def rewind(self, epoch: int) -> None:
        """Leave alone what the other process has written."""


def read_rows(path: Path) -> list[Row]:
    """Rows of a log; a last line cut off by a kill is left out.

    Raises:
        RecordError: another line is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RecordError(
                f"line {number} of {path} is damaged; delete the folder {path.parent} to compute "
                "that stage again."
            ) from error
    return rows
