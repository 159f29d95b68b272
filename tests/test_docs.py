"""Docs are generated or checked: pages are current, the README names what exists, every public thing is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from generate_docs import PAGES, ROOT, with_verbs

from sae.cli import parser

SOURCES = sorted(
    p for folder in ("sae", "server", "feature_store") for p in (ROOT / folder).rglob("*.py") if "ui" not in p.parts
)


@pytest.mark.parametrize("name", list(PAGES))
def test_generated_pages_are_current(name):
    assert (ROOT / name).read_text() == PAGES[name](), "run `make docs`"


def test_the_readme_is_short_and_names_folders_that_exist():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    for path in re.findall(r"`((?:sae|server|feature_store)[\w/]*(?:\.py)?)`", readme):
        assert (ROOT / path).exists(), path
    for page in re.findall(r"\]\(([\w./-]+)\)", readme):
        assert (ROOT / page).exists(), page


def test_every_command_of_the_parser_has_a_help_text():
    page = (ROOT / "docs/cli.md").read_text()
    verbs = [command.prog for command in with_verbs(parser())]
    assert len(verbs) > 17
    assert [verb for verb in verbs if f"## {verb}\n" not in page] == []


def test_the_code_of_the_python_page_runs(finished, monkeypatch, capsys):
    """In one namespace per block, on a small run in place of the quickstart's."""
    page = (ROOT / "docs/python.md").read_text()
    for old, new in (
        ("training_configs/quickstart.yaml", str(finished / "config.yaml")),
        ("train.tokens=700_000", "train.tokens=12000"),
        ("runs/quickstart", str(finished)),
        ("resid-4096", "first"),
        ("resid_post.8", "resid_post.1"),
    ):
        assert old in page, old
        page = page.replace(old, new)

    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    train, encode, tables = ({}, {}, {})
    for block, names in zip(blocks, (train, encode, tables), strict=True):
        exec(compile(block, "docs/python.md", "exec"), names)

    assert train["summary"].dictionaries["first"].metrics.d_sae == 64
    assert encode["x_hat"].shape == encode["x"].shape == (len(encode["texts"][0].tokens), 32)
    assert encode["code"].top_acts.shape[1] == 4 and not encode["texts"][0].is_read[0]
    assert list(tables["features"].index) == list(range(64))
    assert {"density", "label", "score"} <= set(tables["features"].columns)
    assert set(tables["contexts"]["group"]) == {"top"}
    assert tables["contexts"]["act"].is_monotonic_decreasing
    assert tables["scores"]["feature"].nunique() > 10


def test_the_code_of_the_page_on_contrasts_runs(finished, capsys):
    page = (ROOT / "docs/contrast.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    for old, new in (("runs/quickstart/dictionaries/resid-4096", str(finished / "dictionaries/first")), ("783", "7")):
        assert old in block
        block = block.replace(old, new)
    names: dict = {}
    exec(compile(block, "docs/contrast.md", "exec"), names)
    assert len(capsys.readouterr().out.strip()) > 0


def test_the_commands_of_every_page_are_commands():
    """Every `sae NAME` in the README and the pages is one of the parser's, with options that it knows."""
    known = {command.prog: command.format_help() for command in with_verbs(parser())}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^(sae [a-z].*)$", path.read_text(), re.M):
            words = line.split("#")[0].split()
            name = max((n for n in known if line.startswith(f"{n} ") or line == n), key=len, default=None)
            assert name is not None, f"{path.name}: {line}"
            for option in (word for word in words if word.startswith("--")):
                assert option in known[name], f"{path.name}: {option} of {name}"


def test_import_sae_is_light_and_names_what_it_offers():
    code = "import sae, sys; assert 'torch' not in sys.modules; [getattr(sae, n) for n in dir(sae)]; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for config in set(re.findall(r"training_configs/[\w.-]+\.yaml", readme)):
        assert (ROOT / config).is_file(), config
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", readme):
        assert (ROOT / picture).is_file(), picture


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_public_function_and_class_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" or path.read_text().strip():
        assert ast.get_docstring(tree), f"{path}: no first line"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(inner for c in classes for inner in c.body)]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            length = (node.end_lineno or 0) - node.lineno
            if length > 8 and path.parent.name != "responses":
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
            if isinstance(node, ast.FunctionDef):
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_nothing_here_names_a_machine_or_a_registry():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name.endswith((".png", ".lock", "package-lock.json")) or not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(errors="replace")
        assert not re.search(r"/(root|home|work)/\w", text), name


def test_the_page_of_models_has_every_class_and_counts_right():
    """A line for each class of the transformers that it was measured with, and the counts of its first words."""
    from importlib.metadata import version

    from sae.benchmarks.tiny_models import class_names

    page = (ROOT / "docs/models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", page, re.MULTILINE)
    n_built = sum(not result.startswith("cannot be built") for _, result in rows)
    n_causal = n_built - sum(result.startswith("refused:") for _, result in rows)
    n_passed = sum(result == "passes" for _, result in rows)
    assert f"of {len(rows)} classes {n_built} can be built; {n_causal} of these read from left to right alone" in page
    assert f"{n_passed} of these ({100 * n_passed / n_causal:.0f} %) pass" in page
    if f"transformers {version('transformers')}," in page:
        assert [name for name, _ in rows] == class_names()
