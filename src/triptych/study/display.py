"""What a person sees while a study runs: a live table, or lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triptych.tasks.progress import Progress, read_progress

HEARTBEAT_SECONDS = 30.0
STYLES = {"done": "green", "running": "cyan", "failed": "red", "preempted": "yellow"}


@dataclass(frozen=True)
class CellView:
    """One cell as the display needs it; ``seconds`` is what its process has taken so far."""

    name: str
    status: str
    message: str
    seconds: float
    folder: Path


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds_left(views: list[CellView], jobs: int) -> float | None:
    """An estimate from the cells that this command has finished; None before the first."""
    finished = [v.seconds for v in views if v.status == "done" and v.seconds > 0]
    if not finished:
        return None
    mean = sum(finished) / len(finished)
    running = sum(max(0.0, mean - v.seconds) for v in views if v.status == "running")
    waiting = mean * sum(v.status == "waiting" for v in views)
    return (running + waiting) / jobs


class Display:
    """Shows the cells of a study; used as a context manager."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console()
        self.live = (
            Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        )
        self.said: dict[str, str] = {}
        self.started = time.monotonic()
        self.heartbeat = self.started
        self.shown = 0.0

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def note(self, text: str) -> None:
        """Say one line, above the table."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, views: list[CellView], jobs: int) -> None:
        """Bring what is seen up to date."""
        if self.live is None:
            self._lines(views, jobs)
        elif time.monotonic() - self.shown > 0.4 or not any(v.status == "running" for v in views):
            self.shown = time.monotonic()
            self.live.update(Group(self._table(views), self._summary(views, jobs)), refresh=True)

    def _summary(self, views: list[CellView], jobs: int) -> Text:
        done = sum(v.status not in ("waiting", "running") for v in views)
        left = seconds_left(views, jobs)
        parts = [
            f"{done} of {len(views)} cells",
            f"elapsed {clock(time.monotonic() - self.started)}",
        ]
        if done < len(views):
            parts.append(
                "time left: after the first cell" if left is None else f"left ≈ {clock(left)}"
            )
        return Text("  " + "  ·  ".join(parts))

    def _table(self, views: list[CellView]) -> Table:
        table = Table(title=self.title, title_justify="left", expand=True, pad_edge=False)
        table.add_column("cell", ratio=3, overflow="ellipsis", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("stage", ratio=2, no_wrap=True, overflow="ellipsis")
        table.add_column("", width=18)
        table.add_column("time", justify="right")
        for view in _worth_showing(views, self.console.height - 8):
            progress = read_progress(view.folder) if view.status == "running" else None
            table.add_row(
                view.name,
                Text(view.status, style=STYLES.get(view.status, "dim")),
                _stage_text(progress) if view.status == "running" else view.message,
                ProgressBar(total=1.0, completed=progress.share) if progress else "",
                clock(view.seconds) if view.seconds else "",
            )
        return table

    def _lines(self, views: list[CellView], jobs: int) -> None:
        for view in views:
            if self.said.get(view.name) != view.status and view.status != "waiting":
                self.said[view.name] = view.status
                place = f"[{views.index(view) + 1}/{len(views)}]"
                took = (
                    f" in {clock(view.seconds)}"
                    if view.status != "running" and view.seconds
                    else ""
                )
                detail = f": {view.message}" if view.message else ""
                self.note(f"{place} {view.name} {view.status}{took}{detail}")
        if time.monotonic() - self.heartbeat > HEARTBEAT_SECONDS:
            self.heartbeat = time.monotonic()
            running = [
                f"{view.name}: {_stage_text(read_progress(view.folder))}"
                for view in views
                if view.status == "running"
            ]
            self.note(f"{self._summary(views, jobs).plain}  ·  " + "; ".join(running))


def _stage_text(progress: Progress | None) -> str:
    if progress is None:
        return "starting"
    left = f", {clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return f"{progress.stage} {progress.detail} {progress.share:.0%}{left}".replace("  ", " ")


def _worth_showing(views: list[CellView], rows: int) -> list[CellView]:
    """All cells where they fit; else those that run, failed or come next, then the newest done."""
    if len(views) <= rows:
        return views
    rank = {"running": 0, "failed": 1, "preempted": 1, "waiting": 2, "done": 3}
    chosen = sorted(views, key=lambda v: rank[v.status])[: max(3, rows)]
    return [view for view in views if view in chosen]
