"""A new architecture is one new file: config, help, building and evaluation pick it up, and it leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import write_config

import sae.architectures

SOURCE = '''"""Half: a test's architecture."""
from typing import Literal, final
from pydantic import Field
from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import KeepsK
from sae.kernels.sparse import selection_for


class HalfConfig(KeepsK):
    """Settings."""
    architecture: Literal["half"] = Field(default="half", description="Half of TopK.")
    extra: float = Field(default=0.5, description="A setting of its own.")


@final
class Half(SparseAutoencoder[HalfConfig]):
    """Keeps k // 2."""
    config_class = HalfConfig

    def select(self, pre_acts, given):
        """The k // 2 largest."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self.config.k // 2)
'''


@pytest.fixture
def half():
    path = Path(sae.architectures.__path__[0]) / "half.py"
    path.write_text(SOURCE)
    yield path
    path.unlink()


def cli(*arguments):
    command = [sys.executable, "-m", "sae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_one_file_adds_an_architecture(half, tmp_path, tree):
    assert "sae[]<half>.extra" in cli("config", "explain").stdout
    entry = {**tree["sae"][0], "architecture": "half", "name": "half"}
    done = cli("train", write_config(tmp_path, tree, sae=[entry], train__tokens=4000))
    assert done.returncode == 0, done.stderr
    report = tmp_path / "runs" / "tiny" / "dictionaries" / "half" / "report.md"
    assert "fvu" in report.read_text()
    half.write_text("")  # what is left of it must not be found by the next process
    wrong = cli("config", "check", write_config(tmp_path, tree, sae=[entry]))
    assert wrong.returncode == 2 and "'half' is not known" in wrong.stderr
