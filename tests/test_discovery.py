"""A plug-in of every kind is one new file: found, named in the help, at work in one call, and gone with its file.

The files lie in a temporary folder (see `with_plugins`); nothing is written beside the source.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures import copy_run, run_here, write_config
from preloaded import run_cli


class Plugin(NamedTuple):
    """A file of a plug-in package (the example of docs/extending.md), and what the command line says of its name."""

    package: str
    help: tuple[str, ...]  # the command that names it
    unknown: str  # the error once it is gone


PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()


def source(package: str) -> str:
    """The example of docs/extending.md for a package."""
    path = package.replace(".", "/") + "/half.py"
    return re.search(rf"```python\n# {path}\n(.*?)```", PAGE, re.S).group(1)


PLUGINS = {
    "architecture": Plugin("sae.architectures", ("config", "explain"), "'half' is not known"),
    "measure": Plugin("sae.evaluation.measures", ("eval", "--help"), "no measure 'half'"),
    "explainer": Plugin("sae.interpret.explainers", ("interpret", "--help"), "no explainer 'half'"),
    "scorer": Plugin("sae.interpret.scorers", ("interpret", "--help"), "no scorer 'half'"),
    "format": Plugin("sae.interop.formats", ("export", "--help"), "format 'half' is not known"),
}


def calls(kind, tmp_path, tree, finished):
    """The small call that a plug-in works in, and what proves that it did."""
    if kind == "architecture":
        entry = {**tree["sae"][0], "architecture": "half", "name": "half"}
        config = write_config(tmp_path, tree, sae=[entry], train__tokens=4000, index__build=False)
        metrics = tmp_path / "runs" / "tiny" / "dictionaries" / "half" / "metrics.json"
        return ("train", config), lambda _: 0 < json.loads(metrics.read_text())["l0"] <= entry["k"] // 2
    run = copy_run(finished, tmp_path / "run")
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
                and explainers_of(folder) == ["half"]
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


def explainers_of(folder):
    """Explainers that the API offers for the explorer's filter; the server does not have the plug-in."""
    from starlette.testclient import TestClient

    from server.app import create_app
    from server.catalogue import open_catalogue

    with TestClient(create_app(open_catalogue([folder])), base_url="http://localhost") as client:
        (dictionary,) = client.get("/api/v1/dictionaries").json()
        answer = client.get(f"/api/v1/dictionaries/{dictionary['id']}/explainers").json()
    return [item["explainer"] for item in answer["items"]]


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
    path.write_text(source(plugin.package))
    said = run_cli(*plugin.help, plugins=plugins).stdout
    assert "half" in words(said), said

    call, worked = calls(kind, tmp_path, tree, finished)
    done = run_cli(*call, plugins=plugins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert worked(done)

    path.unlink()
    if kind == "architecture":
        call = ("config", "check", call[1])
    gone = run_cli(*call, plugins=plugins)
    assert gone.returncode == 2 and plugin.unknown in gone.stderr, gone.stdout + gone.stderr
    assert "Traceback" not in gone.stderr


def words(text):
    """Words of a help text; settings of an architecture stand in angle brackets."""
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def test_nothing_is_written_beside_the_source():
    import sae

    assert not list(Path(sae.__path__[0]).rglob("half*"))
