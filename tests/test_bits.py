"""A small run of every architecture gives the bits that it gave before: tensors, figures, and rows of the store."""

from __future__ import annotations

import json
from pathlib import Path

import bits
import pytest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bits.json").read_text())


@pytest.fixture(scope="module")
def made(every_architecture):
    return bits.record(every_architecture / "dictionaries")


@pytest.mark.parametrize("name", list(GOLDEN["figures"]))
def test_figures_are_those_of_the_record(made, name):
    """On any machine within a tolerance: sums in another order lead to other bits, and to nearly the same figures."""
    figures, golden = made["figures"][name], GOLDEN["figures"][name]
    assert figures.keys() == golden.keys()
    assert figures["fvu"] == pytest.approx(golden["fvu"], abs=0.05)
    assert figures["l0"] == pytest.approx(golden["l0"], rel=0.1)


@pytest.mark.skipif(bits.machine() != GOLDEN["machine"], reason="the record's bits are of another processor or torch")
@pytest.mark.parametrize("name", list(GOLDEN["bits"]))
def test_bits_are_those_of_the_record(made, name):
    assert made["bits"][name] == GOLDEN["bits"][name]
