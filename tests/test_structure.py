"""The form of the source: lengths, parameters, names, docstrings, results, folders. Each test lists all offenders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION, LONGEST_FILE, MOST_POSITIONAL = 60, 350, 4
MOST_ENTRIES_OF_SAE, MOST_FILES_IN_A_FOLDER = 20, 15
PLUGIN_FOLDERS = {
    "sae/architectures", "sae/evaluation/measures", "sae/interpret/explainers", "sae/interpret/scorers",
    "sae/interop/formats", "sae/commands",
}  # fmt: skip
# They say of anything that it is there, and of nothing what it is.
# Their parameters and results are torch's and transformers' to choose.
CHOSEN_ELSEWHERE = {
    "sae/kernels/sparse.py: backward",
    "sae/architectures/jumprelu.py: backward",
    "sae/apply/heads/attribution.py: attend",
}
EMPTY_NAMES = {"found", "made", "given", "own", "kept", "more", "named"}
COMPILERS = {"njit", "jit", "vectorize", "guvectorize"}
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """A file of the three packages."""

    path: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST, what: str) -> str:
        """A line of a message."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {what}"


def _sources() -> list[Source]:
    paths = sorted(p for folder in ("sae", "server", "feature_store") for p in (ROOT / folder).rglob("*.py"))
    kept = [p for p in paths if not {"ui", "static"} & set(p.relative_to(ROOT).parts)]
    return [Source(str(p.relative_to(ROOT)), p.read_text(), ast.parse(p.read_text())) for p in kept]


SOURCES = _sources()


def functions(source: Source) -> Iterator[Function]:
    """All functions of a file, nested ones included."""
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _name(node: ast.expr) -> str:
    """The last part of what is called or used as a decorator."""
    if isinstance(node, ast.Call | ast.Subscript):
        return _name(node.func if isinstance(node, ast.Call) else node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_compiled(function: Function) -> bool:
    """Whether numba or Triton compiles it."""
    return any(_name(decorator) in COMPILERS for decorator in function.decorator_list)


TAKE_ANY_NUMBER = {"zip", "map", "print", "min", "max", "chain", "product", "Path", "join", "union"} | {
    function.name for source in SOURCES for function in functions(source) if function.args.vararg
}
COMPILED = {function.name for source in SOURCES for function in functions(source) if is_compiled(function)}


def uncompiled(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one that is not inside a compiled function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and is_compiled(child):
            continue
        yield child
        yield from uncompiled(child)


def report(offenders: list[str]) -> None:
    """Fails with all of them."""
    assert not offenders, f"{len(offenders)} offenders:\n" + "\n".join(offenders)


def test_functions_are_short():
    report([
        source.at(f, f"{f.name} has {length} lines, allowed are {LONGEST_FUNCTION}")
        for source in SOURCES
        for f in functions(source)
        if (length := (f.end_lineno or 0) - f.lineno + 1) > LONGEST_FUNCTION
    ])  # fmt: skip


def test_files_are_short():
    report([
        f"{source.path}: {n} lines, allowed are {LONGEST_FILE}"
        for source in SOURCES
        if (n := len(source.text.splitlines())) > LONGEST_FILE
    ])  # fmt: skip


def test_files_are_read_and_written_in_one_encoding_whatever_the_locale():
    offenders = []
    for source in SOURCES:
        for call in (n for n in ast.walk(source.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)):
            n_before = {"read_text": 0, "write_text": 1}.get(call.func.attr)  # arguments before the encoding
            is_named = any(keyword.arg == "encoding" for keyword in call.keywords)
            if n_before is not None and len(call.args) <= n_before and not is_named:
                offenders.append(f"{source.path}:{call.lineno}: {call.func.attr} without an encoding")
    report(offenders)


def test_definitions_have_few_positional_parameters():
    offenders = []
    for source in SOURCES:
        for f in (n for n in uncompiled(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
            names = [a.arg for a in (*f.args.posonlyargs, *f.args.args)]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            if len(names) > MOST_POSITIONAL and f"{source.path}: {f.name}" not in CHOSEN_ELSEWHERE:
                offenders.append(source.at(f, f"{f.name}: keyword-only from the fifth on: {', '.join(names[4:])}"))
    report(offenders)


def test_calls_have_few_positional_arguments():
    offenders = []
    for source in SOURCES:
        for call in (n for n in uncompiled(source.tree) if isinstance(n, ast.Call)):
            n = sum(not isinstance(argument, ast.Starred) for argument in call.args)
            # A Triton program is called as program[grid](...).
            is_kernel = isinstance(call.func, ast.Subscript) or _name(call.func) in COMPILED
            if n > MOST_POSITIONAL and not is_kernel and _name(call.func) not in TAKE_ANY_NUMBER:
                offenders.append(source.at(call, f"{_name(call.func)}(...) with {n} positional arguments"))
    report(offenders)


def local_names(node: ast.AST, in_function: bool = False, in_comprehension: bool = False) -> Iterator[ast.AST]:
    """Parameters and variables of functions, but those of comprehensions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.arg) or (
            isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and in_function and not in_comprehension
        ):
            yield child
        within = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.ClassDef):
            within = False
        yield from local_names(child, within, in_comprehension or isinstance(child, COMPREHENSIONS))


def test_names_say_what_they_hold():
    offenders = []
    for source in SOURCES:
        for node in local_names(source.tree):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            if name in EMPTY_NAMES:
                offenders.append(source.at(node, name))
    report(offenders)


def test_docstrings_say_what_a_thing_is_or_does():
    offenders = []
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if text.startswith(("Of ", "Whose ")):
                    offenders.append(source.at(node, text.splitlines()[0]))
    report(offenders)


def is_long_tuple(annotation: ast.expr | None) -> bool:
    """Whether it is tuple[A, B, C] or longer, or a union with one."""
    if isinstance(annotation, ast.BinOp):
        return is_long_tuple(annotation.left) or is_long_tuple(annotation.right)
    if not isinstance(annotation, ast.Subscript) or _name(annotation.value) not in ("tuple", "Tuple"):
        return False
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return len(parts) > 2 and not any(isinstance(p, ast.Constant) and p.value is ... for p in parts)


def test_results_of_three_parts_or_more_have_names():
    report([
        source.at(f, f"{f.name} -> {ast.unparse(f.returns)}")
        for source in SOURCES
        for f in functions(source)
        if f.returns is not None and not is_compiled(f) and is_long_tuple(f.returns)
        and f"{source.path}: {f.name}" not in CHOSEN_ELSEWHERE
    ])  # fmt: skip


def test_folders_are_small():
    entries = [p.name for p in (ROOT / "sae").iterdir() if p.name != "__pycache__"]
    offenders = [] if len(entries) <= MOST_ENTRIES_OF_SAE else [f"sae: {len(entries)} entries: {', '.join(entries)}"]
    folders: dict[str, int] = {}
    for source in SOURCES:
        path = Path(source.path)
        folders[str(path.parent)] = folders.get(str(path.parent), 0) + (path.name != "__init__.py")
    offenders += [
        f"{folder}: {n} files, allowed are {MOST_FILES_IN_A_FOLDER}"
        for folder, n in folders.items()
        if n > MOST_FILES_IN_A_FOLDER and folder not in PLUGIN_FOLDERS
    ]
    report(offenders)


def test_the_plugin_folders_exist():
    assert all((ROOT / folder).is_dir() for folder in PLUGIN_FOLDERS)


def test_tests_import_fixtures_and_no_other_test():
    offenders = []
    for path in sorted((ROOT / "tests").glob("*.py")):
        source = Source(f"tests/{path.name}", path.read_text(), ast.parse(path.read_text()))
        for node in ast.walk(source.tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                if module.removeprefix("tests.").startswith(("test_", "conftest")) or module == "tests.fixtures":
                    offenders.append(source.at(node, module))
    report(offenders)
