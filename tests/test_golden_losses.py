"""200 updates of every architecture give the losses that they gave before."""

from __future__ import annotations

import bits
import numpy as np
import pytest
from golden_losses import FOLDER, N_UPDATES, losses_of, stored

from sae.architectures import ARCHITECTURES

HOW = "python -m tests.golden_losses"


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_losses_are_those_of_the_record(name):
    """To the bit on the machine of the record; elsewhere sums come in another order, and updates carry that on."""
    assert (FOLDER / f"{name}.txt").is_file(), f"no record of {name}'s losses: write it with `{HOW} {name}`"
    machine, golden = stored(name)
    losses = losses_of(name)
    assert len(golden) == len(losses) == N_UPDATES
    if bits.machine() == machine:
        for update, (line, expected) in enumerate(zip(losses, golden, strict=True)):
            assert line == expected, (
                f"update {update}: another loss than in the record; if it is meant, run `{HOW} {name}`"
            )
    else:
        np.testing.assert_allclose(losses, golden, rtol=0.02, atol=0.005)
    assert golden[-1][1] < 0.8 * golden[0][1], "the record is of a run that does not learn"


def test_there_is_no_record_without_an_architecture():
    assert {path.stem for path in FOLDER.glob("*.txt")} <= set(ARCHITECTURES)
