"""A tiny run that is disturbed again and again, and the comparison of what it leaves with what an undisturbed one does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .operations import Fault, Operations

Arguments = list[str]
NOT_COMPARED = {"seconds.json", ".lock", ".owner"}  # times, and who has the folder
TIMED = {  # the values of a file that are times or counts of work
    "summary.json": ("seconds", "seconds_total", "rates", "peak_bytes", "cache"),
    "card.json": ("created", "card_sha256"),
}
KILLED, STOPPED, DISK, THERE = -signal.SIGKILL, 75, 74, 2


class Ended(NamedTuple):
    """How a command ended: its exit code, negative for a signal, and what it printed."""

    code: int
    printed: str


def preload() -> None:
    """Imports everything that a run needs, once: a forked child then begins at once, and is a process of its own."""
    import preloaded_modules  # noqa: F401


class Workplace:
    """A folder with a tiny run's config, in which one command after another is run and disturbed."""

    def __init__(self, folder: Path, config: Path):
        self.folder, self.config = folder, config
        self.runs, self.run = folder / "runs", folder / "runs" / "tiny"
        self._output = folder / "output"

    @property
    def train(self) -> Arguments:
        """The command that makes the run, or goes on with it."""
        return ["train", str(self.config)]

    def start(self, arguments: Arguments, fault: Fault | None = None, log: Path | None = None) -> int:
        """The process id of `sae ...` in a forked child, in which a fault happens to what it does in `runs`."""
        child = os.fork()
        if child:
            return child
        try:
            from sae.cli import main

            os.setsid()
            handle = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1), os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            if fault is not None or log is not None:
                Operations(self.runs, fault or Fault("", 0), log).install()
            code = main(arguments)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)

    def end(self, child: int, timeout_s: float = 300) -> Ended:
        """Waits for a child; after `timeout_s` it is killed."""
        deadline = time.monotonic() + timeout_s
        while True:
            waited, status = os.waitpid(child, os.WNOHANG)
            if waited:
                return Ended(os.waitstatus_to_exitcode(status), self._output.read_text(errors="replace"))
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.005)

    def complete(self, arguments: Arguments, fault: Fault | None = None) -> Ended:
        """Runs `sae ...` to its end."""
        return self.end(self.start(arguments, fault))

    def signal(self, arguments: Arguments, number: signal.Signals, after_s: float) -> Ended:
        """Sends a signal to a command some seconds after it began."""
        child = self.start(arguments)
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        return self.end(child)

    def operations(self, arguments: Arguments) -> list[str]:
        """What a command does to the disk, in order."""
        log = self.folder / "operations"
        log.unlink(missing_ok=True)
        done = self.end(self.start(arguments, log=log))
        assert done.code == 0, done.printed
        return log.read_text().splitlines()

    def reset(self, state: Path | None = None) -> None:
        """Empties `runs`, or makes it a copy of an earlier state."""
        shutil.rmtree(self.runs, ignore_errors=True)
        if state is not None:
            shutil.copytree(state, self.runs)

    def keep(self, name: str) -> Path:
        """A copy of `runs` to return to."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return shutil.copytree(self.runs, self.folder / name)

    def contents(self) -> dict[str, str]:
        """SHA-256 of every file in `runs`, by its path; of files that hold times, of all else in them."""
        digests = {}
        for path in sorted(p for p in self.runs.rglob("*") if p.is_file() and p.name not in NOT_COMPARED):
            data = path.read_bytes()
            if path.name in TIMED:
                data = json.dumps({k: v for k, v in json.loads(data).items() if k not in TIMED[path.name]}).encode()
            digests[str(path.relative_to(self.runs))] = hashlib.sha256(data).hexdigest()
        return digests

    def differing(self, reference: dict[str, str]) -> list[str]:
        """The files that are missing, left over, or of other bytes than those of an undisturbed run."""
        there = self.contents()
        return sorted(name for name in {*there, *reference} if there.get(name) != reference.get(name))


class Trial(NamedTuple):
    """One disturbed run: what happened, the exit codes in order, and everything that is not as promised."""

    title: str
    codes: list[int]
    problems: list[str]


def ends_alike(work: Workplace, arguments: Arguments, reference: dict[str, str], codes: list[int]) -> Iterator[str]:
    """Runs the same command to its end; what it says if it does not end well, and the files that differ."""
    again = work.complete(arguments)
    codes.append(again.code)
    if again.code not in ({0, THERE} if arguments[0] in ("export", "import") else {0}):  # these never overwrite
        yield f"the same command then: exit {again.code}: {again.printed[-300:]}"
    yield from (f"differs: {name}" for name in work.differing(reference))


def random_stops(
    work: Workplace,
    arguments: Arguments,
    reference: dict[str, str],
    *,
    seed: int,
    longest_s: float,
    number: signal.Signals,
    state: Path | None = None,
) -> Trial:
    """A command that gets a signal up to four times at random moments, each time is begun again, and at last ends."""
    draw, codes, problems = random.Random(seed), [], []
    work.reset(state)
    expected = {0, KILLED} if number == signal.SIGKILL else {0, STOPPED}
    for _ in range(draw.randint(1, 4)):
        ended = work.signal(arguments, number, draw.uniform(0.02, longest_s))
        codes.append(ended.code)
        if ended.code not in expected:
            problems.append(f"exit {ended.code}: {ended.printed[-300:]}")
        if ended.code == 0:
            break
    problems += ends_alike(work, arguments, reference, codes)
    return Trial(f"{arguments[0]}, {number.name}, seed {seed}", codes, problems)


def fault_at(
    work: Workplace, arguments: Arguments, reference: dict[str, str], fault: Fault, state: Path | None = None
) -> Trial:
    """A command with a fault at one of its operations, and then the same command without."""
    work.reset(state)
    ended = work.complete(arguments, fault)
    is_kill, codes, problems = fault.kind.startswith("kill"), [ended.code], []
    if ended.code not in ({KILLED} if is_kill else {0, DISK}):
        problems.append(f"exit {ended.code}: {ended.printed[-300:]}")
    if ended.code == DISK and str(work.folder) not in ended.printed:
        problems.append(f"no file is named: {ended.printed[-300:]}")
    problems += ends_alike(work, arguments, reference, codes)
    return Trial(f"{arguments[0]}, {fault.kind} at operation {fault.number}", codes, problems)
