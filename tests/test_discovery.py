"""A plug-in of every kind is one new file: found, named in the help, at work in one call, and gone with its file.

The files lie in a temporary folder (see `with_plugins`); nothing is written beside the source.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures import run_here, write_config

DRIVER = Path(__file__).parent / "with_plugins.py"


class Plugin(NamedTuple):
    """A file of a plug-in package, and what the command line says of its name."""

    package: str
    source: str
    help: tuple[str, ...]  # the command that names it
    unknown: str  # the error once it is gone


ARCHITECTURE = '''"""Half: a test's architecture."""
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

    def select(self, pre_acts, selection):
        """The k // 2 largest."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self.config.k // 2)
'''
MEASURE = '''"""Half of the width."""
from sae.evaluation.measure import Measure


class Half(Measure):
    """Latents divided by two."""
    meanings = {"half": "half of the latents"}

    def measure(self, subject):
        """See `meanings`."""
        return {"half": subject.sae.d_sae / 2}
'''
EXPLAINER = '''"""Explains every feature by the word half."""
from sae.interpret.evidence import Counts
from sae.interpret.explainer import Explainer, Proposal


class Half(Explainer):
    """One text for all."""
    name = "half"

    def explain(self, evidence, feature):
        """Always the same."""
        counts = Counts(5, 10, 1, 100)
        return Proposal("half", frozenset({"half"}), counts, counts)

    def items(self, evidence, event):
        """Nothing."""
        return frozenset()
'''
SCORER = '''"""Gives every label one half."""
from sae.interpret.intervals import Interval
from sae.interpret.scorer import Figure, Scorer


class Half(Scorer):
    """One figure for all."""
    name = "half"
    by_default = False

    def score(self, case):
        """One half."""
        return [Figure("half", Interval(0.5, 0.4, 0.6), 0.5, n_pos=1, n_neg=1)]
'''
FORMAT = '''"""A torch file of plain tensors."""
import torch
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class Half(Format):
    """What `ForeignWeights` holds."""

    def write(self, weights, folder):
        """weights.pt."""
        folder.mkdir(exist_ok=True)
        tensors = {name: getattr(weights, name) for name in NAMES}
        torch.save({**tensors, "k": weights.k, "hook": weights.facts["hook"]}, folder / "weights.pt")

    def read(self, path):
        """The same again."""
        stored = torch.load(path / "weights.pt", weights_only=True)
        return ForeignWeights(
            "topk", **{name: stored[name] for name in NAMES}, k=stored["k"], facts={"hook": stored["hook"]}
        )
'''
PLUGINS = {
    "architecture": Plugin("sae.architectures", ARCHITECTURE, ("config", "explain"), "'half' is not known"),
    "measure": Plugin("sae.evaluation.measures", MEASURE, ("eval", "--help"), "no measure 'half'"),
    "explainer": Plugin("sae.interpret.explainers", EXPLAINER, ("interpret", "--help"), "no explainer 'half'"),
    "scorer": Plugin("sae.interpret.scorers", SCORER, ("interpret", "--help"), "no scorer 'half'"),
    "format": Plugin("sae.interop.formats", FORMAT, ("export", "--help"), "format 'half' is not known"),
}


def cli(plugins, *arguments):
    """`sae ...` with the plug-ins of a folder."""
    command = [sys.executable, str(DRIVER), str(plugins), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def calls(kind, tmp_path, tree, finished):
    """The small call that a plug-in works in, and what proves that it did."""
    if kind == "architecture":
        entry = {**tree["sae"][0], "architecture": "half", "name": "half"}
        config = write_config(tmp_path, tree, sae=[entry], train__tokens=4000, index__build=False)
        metrics = tmp_path / "runs" / "tiny" / "dictionaries" / "half" / "metrics.json"
        return ("train", config), lambda _: 0 < json.loads(metrics.read_text())["l0"] <= entry["k"] // 2
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = run / "dictionaries" / "first"
    if kind == "measure":
        return (
            ("eval", folder, "--measures", "half"),
            lambda _: (
                json.loads((folder / "metrics.json").read_text())["half"] == 32
                and "half of the latents" in (folder / "report.md").read_text()
            ),
        )
    if kind == "explainer":
        return (
            ("interpret", folder, "--explainers", "half", "--scorers", "coherence"),
            lambda _: (
                set(json.loads((folder / "labels.json").read_text())["labels_by_explainer"]) >= {"half"}
                and labels_of(folder) == {("half", "half")}
            ),
        )
    if kind == "scorer":
        return (
            "interpret",
            folder,
            "--explainers",
            "token",
            "--scorers",
            "half",
        ), lambda _: 0.5 in figures_of(folder, "half")
    target = tmp_path / "theirs"
    return (
        "export",
        folder,
        "--to",
        "half",
        target,
    ), lambda done: "equal on 1,000 random rows" in done.stdout and (target / "weights.pt").is_file()


def labels_of(folder):
    """(explainer, text) of every label of a dictionary."""
    from feature_store.queries import interpretation
    from feature_store.store import Store

    store = Store(folder / "store")
    labels = {(row.explainer, row.text) for row in interpretation(store).labels}
    store.close()
    return labels


def figures_of(folder, scorer):
    """Values of a scorer."""
    from feature_store.queries import interpretation
    from feature_store.store import Store

    store = Store(folder / "store")
    values = {row.score.value for row in interpretation(store).scores if row.score.scorer == scorer}
    store.close()
    return values


@pytest.mark.parametrize("kind", list(PLUGINS))
def test_one_file_adds_a_plugin_and_takes_it_away(kind, tmp_path, tree, finished):
    plugin, plugins = PLUGINS[kind], tmp_path / "plugins"
    path = plugins / plugin.package / "half.py"
    path.parent.mkdir(parents=True)
    assert "half" not in words(run_here(*plugin.help).stdout)
    path.write_text(plugin.source)
    said = cli(plugins, *plugin.help).stdout
    assert "half" in words(said), said

    call, worked = calls(kind, tmp_path, tree, finished)
    done = cli(plugins, *call)
    assert done.returncode == 0, done.stdout + done.stderr
    assert worked(done)

    path.unlink()
    if kind == "architecture":
        call = ("config", "check", call[1])
    gone = cli(plugins, *call)
    assert gone.returncode == 2 and plugin.unknown in gone.stderr, gone.stdout + gone.stderr
    assert "Traceback" not in gone.stderr


def words(text):
    """Words of a help text; settings of an architecture stand in angle brackets."""
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def test_nothing_is_written_beside_the_source():
    import sae

    assert not list(Path(sae.__path__[0]).rglob("half*"))
