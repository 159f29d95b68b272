"""A few kills and stops of the harness in tests/faults; CONTRIBUTING.md has the long form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import Workplace
from tests.faults.operations import Fault, Operations


@pytest.mark.skipif("SAEDEX_LONG_TESTS" not in os.environ, reason="a minute; set SAEDEX_LONG_TESTS to run it")
def test_what_is_killed_ends_with_the_same_bytes():
    command = [sys.executable, "-m", "tests.faults", "--kills", "2", "--seed", "7"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout and done.stdout.count("sound") >= 4


def test_the_harness_finds_files_that_differ(tmp_path):
    work = Workplace(tmp_path, tmp_path / "config.yaml")
    work.run.mkdir(parents=True)
    for name in ("card.json", "seconds.json", "ids.bin"):
        (work.run / name).write_text('{"created": 1, "k": 2}')
    reference = work.contents()
    (work.run / "card.json").write_text('{"created": 2, "k": 2}')
    (work.run / "seconds.json").unlink()
    assert work.differing(reference) == []
    (work.run / "card.json").write_text('{"created": 1, "k": 3}')
    (work.run / "ids.bin").unlink()
    (work.run / "left.duckdb").write_text("")
    assert work.differing(reference) == ["tiny/card.json", "tiny/ids.bin", "tiny/left.duckdb"]


def test_only_the_operation_whose_turn_it_is_fails(tmp_path):
    operations = Operations(tmp_path / "runs", Fault("ENOSPC", 2))
    inside, outside = tmp_path / "runs" / "a", tmp_path / "b"
    assert operations.perform("open", outside, lambda: "done") == "done"
    assert operations.perform("open", inside, lambda: "done") == "done"
    with pytest.raises(OSError, match="No space left on device"):
        operations.perform("open", inside, lambda: "done")
    assert operations.perform("open", inside, lambda: "done") == "done"
