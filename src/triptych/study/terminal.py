"""The progress of a single run in the terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from triptych.study.display import HEARTBEAT_SECONDS, clock
from triptych.tasks.progress import Progress


class TerminalProgress:
    """A bar where there is a terminal; a line for each stage, and now and then, where not."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.stage = ""
        self.said = 0.0
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.row = self.bar.add_task(title, total=1.0, detail="")

    def __enter__(self) -> TerminalProgress:
        self.console.print(self.title, highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        left = f", {clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        detail = progress.detail + left
        if self.console.is_terminal:
            self.bar.update(
                self.row, description=progress.stage, completed=progress.share, detail=detail
            )
        elif progress.stage != self.stage or time.monotonic() - self.said > HEARTBEAT_SECONDS:
            self.said = time.monotonic()
            self.console.print(f"  {progress.stage} {progress.share:.0%} {detail}", highlight=False)
        self.stage = progress.stage
