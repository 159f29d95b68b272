"""`python -m tests.faults`: kills, signals, failing operations and full disks, each compared with an undisturbed run.

    python -m tests.faults --kills 200 --seed 0     kills of training and of every command, at random moments
    python -m tests.faults --operations 1           every operation on the disk fails in four ways; 4: every fourth
    python -m tests.faults --operations 1 --part 2/8   the second of eight equal parts, for eight processors
    python -m tests.faults --disks 12               as root: the run's disk is full after more and more bytes
    python -m tests.faults --processes              other hash seeds and numbers of threads

Every trial is a line with its seed; a problem is printed with its command's output. Exit 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
sys.path.insert(0, str(Path(__file__).parents[1]))

import fixtures

from .harness import Arguments, Trial, Workplace, ends_alike, fault_at, preload, random_stops
from .operations import KINDS, Fault

SMALL = {
    "train__tokens": 6000,
    "train__checkpoint_tokens": 3000,
    "sae__0__d_sae": 48,
    "evaluate__measures": ["reconstruction", "splice", "decoder", "description_length"],
}
LABELLED = [f'{{"text": "cat {n} on a mat", "label": {"true" if n % 2 else "false"}}}' for n in range(24)]


class Part(NamedTuple):
    """Which of `of_all` equal parts of the trials a process performs; the first is 1."""

    number: int = 1
    of_all: int = 1

    @classmethod
    def read(cls, text: str) -> Part:
        """`2/8` is the second of eight."""
        return cls(*map(int, text.split("/")))

    def of(self, trials: list[Any]) -> list[Any]:
        """This part's trials."""
        return trials[self.number - 1 :: self.of_all]


def workplace(folder: Path) -> Workplace:
    """A folder with a tiny model, a text and a config."""
    folder.mkdir(parents=True)
    (folder / "other.jsonl").write_text(
        "\n".join(f'{{"text": "a dog {n} ran to the other side of the road"}}' for n in range(400))
    )
    tree = fixtures.small_tree(fixtures.save_model(folder / "model"), fixtures.save_text(folder / "text.jsonl"))
    (folder / "labelled.jsonl").write_text("\n".join(LABELLED))
    return Workplace(folder, fixtures.write_config(folder, tree, **SMALL))


def undisturbed(work: Workplace, arguments: Arguments, state: Path | None = None) -> tuple[dict[str, str], float]:
    """What a command leaves if nothing disturbs it, and how long it takes."""
    work.reset(state)
    start = time.monotonic()
    done = work.complete(arguments)
    assert done.code == 0, done.printed
    return work.contents(), time.monotonic() - start


def commands(work: Workplace) -> list[Arguments]:
    """Every command that writes, on the finished run in `runs`, which holds an exported dictionary."""
    first = str(work.run / "dictionaries" / "first")
    return [
        ["interpret", first, "--explainers", "token,bigram"],
        ["eval", str(work.run), "--measures", "reconstruction,description_length"],
        ["eval", str(work.run), "--text", f"other={work.folder / 'other.jsonl'}"],
        ["concept", "add", first, "--name", "x", "--labelled", str(work.folder / "labelled.jsonl")],
        ["export", first, "--to", "dictionary_learning", str(work.runs / "again")],
        ["import", str(work.runs / "exported"), str(work.runs / "imported"), "--from", "saelens"],
    ]


def kills(work: Workplace, n_kills: int, seed: int) -> Iterator[Trial]:
    """At least `n_kills` kills, four of five of them in training, and a quarter as many stops by SIGTERM and SIGINT."""
    reference, longest_s = undisturbed(work, work.train)
    exported = work.complete(
        ["export", str(work.run / "dictionaries" / "first"), "--to", "saelens", str(work.runs / "exported")]
    )
    assert exported.code == 0, exported.printed
    finished = work.keep("finished")
    numbers = count(seed)

    def until(most: int, arguments: Arguments, expected: dict[str, str], seconds: float, state: Path | None):
        for number, share in ((signal.SIGKILL, 1.0), (signal.SIGTERM, 0.125), (signal.SIGINT, 0.125)):
            n_stopped = 0
            while n_stopped < most * share:
                trial = random_stops(
                    work, arguments, expected, seed=next(numbers), longest_s=seconds, number=number, state=state
                )
                n_stopped += max(1, len(trial.codes) - 1 - trial.codes[:-1].count(0))
                yield trial

    yield from until(n_kills * 4 // 5, work.train, reference, longest_s, None)
    for arguments in commands(work):
        expected, seconds = undisturbed(work, arguments, finished)
        yield from until(-(-n_kills // 15), arguments, expected, seconds, finished)


def operations(work: Workplace, step: int, part: Part) -> Iterator[Trial]:
    """Every `step`-th operation of the run fails in each of four ways; each way begins at another one.

    The run is begun from states in which it was killed before: else most of the time would go into its beginning.
    """
    reference, _ = undisturbed(work, work.train)
    work.reset()
    n_operations = len(work.operations(work.train))
    states: list[Path | None] = [None]
    for number in range(40, n_operations, 40):
        work.reset()
        work.complete(work.train, Fault("kill before", number))
        states.append(work.keep(f"state-{number}"))

    left = []
    for state in states:
        work.reset(state)
        left.append(len(work.operations(work.train)))
    print(f"{n_operations} operations; from the states: {left}", flush=True)

    faults = [
        (state, Fault(kind, min(number, more)))
        for state, (more, fewer) in zip(states, pairwise([*left, 0]), strict=True)
        for first, kind in enumerate(KINDS)
        for number in range(1 + first * step // len(KINDS), more - max(fewer - 5, 0) + 1, step)
    ]
    for state, fault in part.of(faults):
        yield fault_at(work, work.train, reference, fault, state)


def disks(work: Workplace, n_sizes: int) -> Iterator[Trial]:
    """The run on disks of `n_sizes` sizes, from too small for anything to nearly enough."""
    reference, _ = undisturbed(work, work.train)
    needed = sum(path.stat().st_blocks * 512 for path in work.runs.rglob("*")) * 2
    for n_bytes in (needed * k // n_sizes for k in range(1, n_sizes + 1)):
        work.reset()
        work.runs.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o"]
        subprocess.run([*mount, f"size={n_bytes}", "tmpfs", str(work.runs)], check=True)
        try:
            full = work.complete(work.train)
            problems = [] if full.code in (0, 2, 74) else [f"exit {full.code}: {full.printed[-400:]}"]
            if full.code == 74 and str(work.runs) not in full.printed:
                problems.append(f"no file is named: {full.printed[-300:]}")
            subprocess.run([*mount, "remount,size=1G", "tmpfs", str(work.runs)], check=True)
            codes = [full.code]
            problems += ends_alike(work, work.train, reference, codes)
        finally:
            subprocess.run(["umount", str(work.runs)], check=True)
        yield Trial(f"disk of {n_bytes:,} bytes", codes, problems)


def processes(work: Workplace) -> Iterator[Trial]:
    """The run in processes of their own, with other hash seeds and numbers of threads."""
    reference, _ = undisturbed(work, work.train)
    for hash_seed, threads in (("0", "1"), ("1", "1"), ("2", "2"), ("random", "4")):
        work.reset()
        variables = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        command = [sys.executable, "-m", "sae.cli", *work.train]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        problems = [] if done.returncode == 0 else [done.stderr[-300:]]
        problems += [f"differs: {name}" for name in work.differing(reference)]
        yield Trial(f"PYTHONHASHSEED={hash_seed} threads={threads}", [done.returncode], problems)


def main() -> int:
    """Runs what the command line names and prints a line per trial and the sums."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, metavar="N", help="kill training and every command N times in all")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each further one has the next")
    parser.add_argument("--operations", type=int, metavar="STEP", help="let every STEP-th operation fail")
    parser.add_argument("--part", type=Part.read, default=Part(), metavar="I/N", help="the I-th of N parts of these")
    parser.add_argument("--disks", type=int, metavar="N", help="as root: N sizes of a disk that is too small")
    parser.add_argument("--processes", action="store_true", help="other hash seeds and numbers of threads")
    arguments = parser.parse_args()

    home = Path(tempfile.mkdtemp(prefix="saedex-faults-"))
    work = workplace(home / "work")
    preload()
    kinds = {
        "kills": arguments.kills and kills(work, arguments.kills, arguments.seed),
        "operations": arguments.operations and operations(work, arguments.operations, arguments.part),
        "disks": arguments.disks and disks(work, arguments.disks),
        "processes": arguments.processes and processes(work),
    }
    n_problems = 0
    for name, trials in kinds.items():
        if not trials:
            continue
        n_trials, codes = 0, []
        for trial in trials:
            n_trials, codes = n_trials + 1, [*codes, *trial.codes[: -1 or None]]
            n_problems += bool(trial.problems)
            print("WRONG" if trial.problems else "sound", trial.title, trial.codes, *trial.problems, flush=True)
        counted = ", ".join(f"{codes.count(code)} x {code}" for code in sorted(set(codes)))
        print(f"{name}: {n_trials} trials, {n_problems} with problems so far; disturbed commands ended {counted}")

    shutil.rmtree(home, ignore_errors=True)
    return int(n_problems > 0)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
