"""Signatures state the shapes and dtypes of arrays: everywhere, checked by every test, and free without tests."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jaxtyping
import numpy as np
import pytest
import shape_checks
import torch

from feature_store.indexing.formats import formats_of
from sae.kernels.reference import gather_dot

PACKAGES = ("sae", "feature_store", "server")
BARE = {"Tensor", "torch.Tensor", "ndarray", "np.ndarray", "numpy.ndarray", "NDArray", "ArrayLike"}
EXCEPTIONS: dict[str, str] = {}  # function -> why its arrays have no stated shape


class Annotation(NamedTuple):
    """What a function says of one argument, or of what it returns (`of` is "return")."""

    module: str
    function: str
    of: str
    node: ast.expr


def public_functions(scope: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, function) of public functions and methods that Python runs, those inside functions left out."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") and not shape_checks.is_compiled(child):
                yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from public_functions(child, f"{prefix}{child.name}.")
        else:
            yield from public_functions(child, prefix)


def annotations(*packages: str) -> Iterator[Annotation]:
    """Every annotation of a public function of ours."""
    for module, tree in shape_checks.sources(*packages).items():
        for name, function in public_functions(tree):
            a = function.args
            for argument in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]:
                if argument is not None and argument.annotation is not None:
                    yield Annotation(module, name, argument.arg, argument.annotation)
            if function.returns is not None:
                yield Annotation(module, name, "return", function.returns)


def bare_arrays(node: ast.AST) -> Iterator[str]:
    """Names of array classes inside an annotation that no shape stands beside."""
    if shape_checks.states_shape(node):
        return
    if ast.unparse(node) in BARE:
        yield ast.unparse(node)
    for child in ast.iter_child_nodes(node):
        yield from bare_arrays(child)


def test_public_functions_state_the_shapes_of_arrays():
    bare = {f"{a.module}.{a.function}: {a.of}" for a in annotations(*PACKAGES) if any(bare_arrays(a.node))}
    assert {place for place in bare if place.partition(":")[0] not in EXCEPTIONS} == set()
    assert {place.partition(":")[0] for place in bare} >= EXCEPTIONS.keys()


def test_every_stated_shape_is_checked():
    """A name that is imported for pyright alone, or a dimension that jaxtyping cannot read, would be passed over."""
    modules = set(shape_checks.hooked_modules())
    for module in modules:
        importlib.import_module(module)

    stated = {
        (a.module, a.function, a.of)
        for a in annotations(*shape_checks.PACKAGES)
        if a.module in modules and any(map(shape_checks.states_shape, ast.walk(a.node)))
    }
    checked = {(*function, of) for function, names in shape_checks.checked.items() for of in names}
    assert len(stated) > 300
    assert stated - checked == set()


def test_a_wrong_shape_fails():
    rows, indices = torch.ones(3, 5), torch.zeros(3, 2, dtype=torch.int64)
    assert gather_dot(rows, torch.ones(4, 5), indices).shape == (3, 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="gather_dot"):
        gather_dot(rows, torch.ones(4, 6), indices)


def test_a_wrong_dtype_fails():
    ids, vocabulary = np.array([0, 1]), (np.array([6, 0]), np.array([False, True]))
    assert formats_of(ids, np.array([0, 1]), *vocabulary).tolist() == [15, 0]
    with pytest.raises(jaxtyping.TypeCheckError, match="formats_of"):
        formats_of(ids, np.array([0.0, 1.0]), *vocabulary)


def test_nothing_is_checked_without_tests():
    modules = "sae.cli, sae.kernels.reference, sae.architectures, feature_store.indexing.tables"
    code = f"import sys, {modules}; assert 'jaxtyping' in sys.modules; assert 'beartype' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
