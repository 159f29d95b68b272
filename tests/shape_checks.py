"""Checks the shapes and dtypes that signatures state, while tests run: jaxtyping with beartype, put in at import.

`install` must be called before sae is imported. Only functions and dataclasses that name a jaxtyping type are checked,
and only those annotations: jaxtyping's own import hook wraps every function, which doubled the time of a small run.
Modules with functions that numba or Triton compiles are left out: a check would wrap what the compiler has to read.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

import jaxtyping
from beartype import beartype

ROOT = Path(__file__).parents[1]
PACKAGES = ("sae", "feature_store")
IS_COMPILED = re.compile(r"\b(n?jit|vectorize)\b")
checked: dict[tuple[str, str], set[str]] = {}  # (module, function) -> names of checked arguments, and "return"


def sources(*packages: str, naming: str = "") -> dict[str, ast.Module]:
    """Every module of our packages whose text has the word `naming`, by its dotted name."""
    paths = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    texts = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8") for path in paths}
    return {
        name: ast.parse(text) for name, text in texts.items() if naming in text and not name.startswith("server.ui")
    }


def is_compiled(node: ast.AST) -> bool:
    """Whether numba or Triton compiles a function."""
    return isinstance(node, ast.FunctionDef) and any(IS_COMPILED.search(ast.unparse(d)) for d in node.decorator_list)


def states_shape(node: ast.AST) -> bool:
    """Whether an annotation is a jaxtyping type."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name):
        return False
    kind = getattr(jaxtyping, node.value.id, None)
    return inspect.isclass(kind) and issubclass(kind, jaxtyping.AbstractDtype)


def hooked_modules() -> list[str]:
    """Modules that name jaxtyping's types, compile nothing and do without Triton."""
    names = []
    for name, tree in sources(*PACKAGES, naming="jaxtyping").items():
        imports = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imports |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        if "jaxtyping" in imports and "triton" not in imports and not any(map(is_compiled, ast.walk(tree))):
            names.append(name)
    return names


def names_array(hint: Any) -> bool:
    """Whether a type holds a jaxtyping type somewhere inside."""
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(names_array, hint))
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(names_array, get_args(hint)))


def arrays_of(hint: Any) -> Any:
    """The type with all but its jaxtyping types widened to Any; members of a union stay, so that they pass."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None or origin is Callable:
        return hint
    if origin in (Union, UnionType):
        return Union[tuple(map(arrays_of, arguments))]  # noqa: UP007 (of types that are computed)
    return origin[tuple(arrays_of(a) if names_array(a) or a is ... else Any for a in arguments)]


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype for the annotations that name a jaxtyping type; a function without them stays as it is."""
    hints = {name: arrays_of(hint) for name, hint in function.__annotations__.items() if names_array(hint)}
    if not hints:
        return function
    checked.setdefault((function.__module__, function.__qualname__), set()).update(hints)
    function.__annotations__ = hints
    return beartype(function)


def has_shapes(node: ast.AST) -> bool:
    """Whether a function's signature, or a field of a dataclass, names a jaxtyping type."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        a = node.args
        arguments = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x is not None]
        hints = [*(x.annotation for x in arguments), node.returns]
    elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        hints = [x.annotation for x in node.body if isinstance(x, ast.AnnAssign)]
    else:
        return False
    return any(states_shape(part) for hint in hints if hint is not None for part in ast.walk(hint))


class CheckedModule(SourceFileLoader):
    """Loads a module of which what `has_shapes` is wrapped by `jaxtyping.jaxtyped`."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in filter(has_shapes, ast.walk(tree)):
            decorator = ast.parse(f"__import__({__name__!r}).is_checked").body[0].value  # pyright: ignore
            is_class = isinstance(node, ast.ClassDef)
            node.decorator_list.insert(0 if is_class else len(node.decorator_list), ast.copy_location(decorator, node))  # pyright: ignore
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def is_checked(decorated: Any) -> Any:
    """A function or dataclass whose arrays are compared with the shapes that it states."""
    return jaxtyping.jaxtyped(typechecker=typechecker)(decorated)


class CheckedModules:
    """Finds the modules that are to be checked."""

    def __init__(self, names: Sequence[str]):
        self.names = frozenset(names)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.names else None
        if spec is not None and spec.origin is not None:
            spec.loader = CheckedModule(name, spec.origin)
        return spec


def install() -> None:
    """Every module that is imported from now on checks what it states."""
    sys.meta_path.insert(0, CheckedModules(hooked_modules()))  # pyright: ignore
