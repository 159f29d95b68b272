"""Docstrings and READMEs of the installed distributions: a corpus that every machine already has."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "__pycache__", "site-packages", "idlelib", "lib2to3"}
OWN_DISTRIBUTION = "saedex"


def versions() -> dict[str, str]:
    """Name to version of every distribution that the corpus reads, and of Python itself."""
    distributions = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    distributions.pop(OWN_DISTRIBUTION, None)
    return {"python": sys.version.split()[0], **dict(sorted(distributions.items()))}


def _files() -> list[tuple[str, Path]]:
    """(name, path) of each source file and README, in an order that mixes the distributions: by hash of name."""
    files: dict[str, Path] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name in ("", OWN_DISTRIBUTION):
            continue
        for file in distribution.files or ():
            if file.suffix == ".py" and not SKIPPED_FOLDERS.intersection(file.parts):
                files[f"{name}/{file.as_posix()}"] = Path(str(file.locate()))
            elif file.name == "METADATA":
                files[f"{name}/README"] = Path(str(file.locate()))

    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*.py"):
        inside = path.relative_to(library)
        if not SKIPPED_FOLDERS.intersection(inside.parts):
            files[f"python/{inside.as_posix()}"] = path

    return sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _docstrings(source: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of every module, class and function of one file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return

    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", ""), text


def documents(min_chars: int) -> Iterator[tuple[str, str]]:
    """(name, text) of every different text of at least `min_chars` characters, in a fixed order."""
    seen: set[bytes] = set()
    for name, path in _files():
        try:
            source = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        texts = [("", source.partition("\n\n")[2])] if name.endswith("/README") else _docstrings(source)
        for inner, text in texts:
            digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
            if len(text) >= min_chars and digest not in seen:
                seen.add(digest)
                yield (f"{name}:{inner}" if inner else name), text
