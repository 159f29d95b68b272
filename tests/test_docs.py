"""Docs are generated or checked: pages are current, the README names what exists, every public thing is documented."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest
from generate_docs import PAGES, ROOT

SOURCES = sorted(
    p for folder in ("sae", "server", "feature_store") for p in (ROOT / folder).rglob("*.py") if "ui" not in p.parts
)


@pytest.mark.parametrize("name", list(PAGES))
def test_generated_pages_are_current(name):
    assert (ROOT / name).read_text() == PAGES[name](), "run `make docs`"


def test_the_readme_tree_names_every_source_file_once():
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(.*?)```", readme, re.S).group(1)
    named = re.findall(r"([\w.-]+\.py)\b", tree)
    real = [p.name for p in SOURCES if p.name != "__init__.py"]
    assert sorted(named) == sorted(real)


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
            if length > 8 and "responses.py" not in path.name:
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
