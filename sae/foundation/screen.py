"""What a person sees while a run works: one bar per stage on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0


class _Rate(ProgressColumn):
    """Units per second since the stage began (or was resumed)."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Stage:
    """One stage's bar; `update(done, fact=value)` moves it."""

    def __init__(self, console: Console, progress: Progress | None, title: str, total: int, unit: str):
        self.console, self.progress, self.title, self.total, self.unit = console, progress, title, total, unit
        self.done = 0
        self._facts: dict[str, Any] = {}
        self._started = self._said = time.monotonic()
        self._first: int | None = None
        self._task = progress.add_task(title, total=total, unit=unit, facts="") if progress else None

    def update(self, done: int, total: int | None = None, **facts: Any) -> None:
        """Sets how far the stage is; facts such as fvu=0.12 are shown beside the bar."""
        self.done, self.total = done, total or self.total
        self._facts |= facts
        text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in self._facts.items())
        if self.progress is not None and self._task is not None:
            self.progress.update(self._task, completed=done, total=self.total, facts=text)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self.console.print(
                f"{self.title}: {done:,} of {self.total:,} {self.unit}  {text}", highlight=False, soft_wrap=True
            )


class Screen:
    """The console of a run and the time that every stage took."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(stderr=True, quiet=quiet)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "tokens") -> Iterator[Stage]:
        """A bar for the time of the block; its duration is added to `seconds[title]`."""
        start = time.monotonic()
        try:
            if self.console.is_terminal and not self.console.quiet:
                columns = (
                    TextColumn("{task.description:<10}"), BarColumn(bar_width=28), TextColumn("{task.percentage:>3.0f}%"),
                    _Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"),
                )  # fmt: skip
                with Progress(*columns, console=self.console, speed_estimate_period=120) as progress:
                    stage = Stage(self.console, progress, title, total, unit)
                    yield stage
                    stage.update(stage.total)
            else:
                self.say(f"{title} ...")
                yield Stage(self.console, None, title, total, unit)
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - start
