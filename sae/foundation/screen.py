"""The one place where saedex tells people how far it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from sae.foundation.visible import visible

LINE_EVERY_S = 10.0


class Progress:
    """How far a piece of work is. This one is silent; `Screen.progress` gives one that people see.

    Long functions take one and call `update` and `say`; they never know whether anybody looks.
    """

    _n_steps = 0

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        """Sets how many of `total` units are done; figures such as fvu=0.12 are shown beside the bar."""

    def step(self) -> None:
        """One more unit is done, for work that does not number its units."""
        self._n_steps += 1
        self.update(self._n_steps)

    def say(self, text: str) -> None:
        """Prints one line that stays."""


class _Lines(Progress):
    """Progress that prints what is said."""

    def __init__(self, screen: Screen):
        self.screen = screen

    def say(self, text: str) -> None:
        """See `Progress.say`."""
        self.screen.say(text)


class _Bar(_Lines):
    """Progress that is drawn: with a rich bar on a terminal, with a line every `LINE_EVERY_S` seconds elsewhere."""

    def __init__(self, screen: Screen, bars: RichProgress | None, *, title: str, total: int, unit: str):
        super().__init__(screen)
        self.bars, self.title, self.total, self.unit = bars, title, total, unit
        self._figures: dict[str, Any] = {}
        self._printed_at = time.monotonic()
        self._task = bars.add_task(title, total=total, unit=unit, figures="") if bars else None

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        """See `Progress.update`."""
        self.total = total or self.total
        self._figures |= figures
        text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in self._figures.items())

        if self.bars is not None and self._task is not None:
            self.bars.update(self._task, completed=done, total=self.total, figures=text)
        elif time.monotonic() - self._printed_at >= LINE_EVERY_S:
            self._printed_at = time.monotonic()
            self.say(f"{self.title}: {done:,} of {self.total:,} {self.unit}  {text}")


class _Rate(ProgressColumn):
    """Units per second since the work began (or was resumed)."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Screen:
    """The console of a command, and the seconds that each titled piece of work took."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(stderr=True, quiet=quiet)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Prints one line that stays."""
        self.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    def silent_progress(self) -> Progress:
        """Progress without a bar: it prints messages only."""
        return _Lines(self)

    @contextmanager
    def progress(self, title: str, total: int, unit: str = "tokens") -> Iterator[Progress]:
        """Progress that is shown during the block; its duration is added to `seconds[title]`."""
        start = time.monotonic()
        try:
            if self.console.is_terminal and not self.console.quiet:
                with RichProgress(*_columns(), console=self.console, speed_estimate_period=120) as bars:
                    bar = _Bar(self, bars, title=title, total=total, unit=unit)
                    yield bar
                    bar.update(bar.total)
            else:
                self.say(f"{title} ...")
                yield _Bar(self, None, title=title, total=total, unit=unit)
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - start


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
