"""Ctrl-C and SIGTERM turned into an orderly end, so that nothing that was finished is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae.errors import Interrupted

MESSAGE = "stopped; what was finished is kept. The same command goes on from there."


class StopRequest:
    """Whether the user asked the command to stop.

    A signal raises `Interrupted` at once. While the training loop holds it (`held`), the signal is only remembered: the
    loop finishes the update in hand, writes a checkpoint and raises by itself.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal inside the block is remembered instead of raised."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested, also when a library swallowed the first exception."""
        if self.requested:
            raise Interrupted(MESSAGE)

    def _handle(self, number: int, _frame: Any) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C kills the process without ceremony
        if not self._is_held:
            raise Interrupted(MESSAGE)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles both signals during the block; other threads than the main one cannot, and do nothing."""
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

        try:
            yield self
        except Exception as error:
            # Some libraries catch the Interrupted that the handler raised and raise an error of their own.
            if self.requested and not isinstance(error, Interrupted):
                raise Interrupted(MESSAGE) from error
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
