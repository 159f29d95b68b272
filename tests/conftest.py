"""The fixtures of pytest, made of what `fixtures` holds. Expensive ones are made once for all test processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch and numba are imported, and for the processes that tests start: test processes run side by side, and
# threads that wait for one another in a loop would take the cores from those that work.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["NUMBA_NUM_THREADS"] = "2"

import shape_checks

shape_checks.install()  # before sae is imported

from fixtures import (
    Script,
    chromium,
    make_planted,
    opened_chromium,
    run_here,
    save_model,
    save_text,
    scripted_judges,
    serving,
    shared,
    small_tree,
    write_config,
)

from feature_store.store import Store


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all test processes have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_model(shared_root: Path) -> Path:
    """Folder of the small model."""
    return shared(shared_root, "model", lambda folder: str(save_model(folder)))[0]


@pytest.fixture(scope="session")
def text_file(shared_root: Path) -> Path:
    """File with the small text."""
    folder, _ = shared(shared_root, "text", lambda folder: str(save_text(folder / "documents.jsonl")))
    return folder / "documents.jsonl"


@pytest.fixture(scope="session")
def tree(tiny_model: Path, text_file: Path) -> dict[str, Any]:
    """A complete small configuration, as YAML would give it; every test changes a copy."""
    return small_tree(tiny_model, text_file)


def _trained(shared_root: Path, name: str, tree: dict[str, Any], **changes: Any) -> Path:
    """The folder of a run that is trained once; tests that write into it copy it first."""

    def train(folder: Path) -> None:
        done = run_here("train", write_config(folder, tree, **changes))
        assert done.returncode == 0, done.stderr

    return shared(shared_root, name, train)[0] / "runs" / "tiny"


@pytest.fixture(scope="session")
def undisturbed(shared_root: Path, tree: dict[str, Any]) -> Path:
    """The folder of a run that nothing stopped, to compare others with."""
    return _trained(shared_root, "undisturbed", tree)


@pytest.fixture(scope="session")
def finished(shared_root: Path, tree: dict[str, Any]) -> Path:
    """Run folder of a finished small run with two dictionaries at two hook points."""
    second = {**tree["sae"][0], "name": "second", "hook": "mlp_out.2", "k": 8}
    return _trained(shared_root, "finished", tree, sae=[tree["sae"][0], second], index__token_latents=True)


@pytest.fixture(scope="session")
def hidden(shared_root: Path, tree: dict[str, Any]) -> Path:
    """Run folder with a dictionary of an MLP's hidden layer."""
    return _trained(shared_root, "hidden", tree, sae=[{**tree["sae"][0], "hook": "mlp_hidden.1", "d_sae": 96}])


@pytest.fixture(scope="session")
def every_architecture(shared_root: Path, tree: dict[str, Any]) -> Path:
    """Run folder with a dictionary of every architecture, and one of the heads of a layer."""
    from bits import run_small

    return shared(shared_root, "bits", lambda folder: run_small(folder, tree))[0] / "runs" / "bits"


@pytest.fixture(scope="session")
def planted(shared_root: Path) -> tuple[Any, ...]:
    """(folder, store, summary, word families) of `make_planted`."""
    folder, (summary, families) = shared(shared_root, "planted", make_planted)
    return folder, Store(folder / "store"), summary, families


@pytest.fixture
def judges() -> Iterator[Callable[..., Script]]:
    """Starts scripted judges."""
    with scripted_judges() as start:
        yield start


@pytest.fixture(scope="session")
def server(finished: Path) -> Iterator[str]:
    """Address of a real server process over the finished run."""
    with serving(finished) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that use it are skipped without one. Its event loop runs until it is closed."""
    with opened_chromium() as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says loudly when no browser looked at the explorer."""
    if chromium() is None:
        terminalreporter.write_line(
            "*** BROWSER TESTS DID NOT RUN: no Chromium on this machine ***", red=True, bold=True
        )
