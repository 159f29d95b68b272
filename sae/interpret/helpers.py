"""Further processes of this machine that label features beside this one: rules are plain Python, which uses one core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from sae.foundation.distributed import Processes, join_store, local_group, open_store
from sae.interpret.interpret import InterpretConfig, interpret
from sae.interpret.live_dictionary import LiveDictionary
from sae.interpret.scorers import SCORERS

MOST = 8  # processes, each of which holds the evidence of the whole store
FEATURES_EACH = 1024  # below that a process takes longer to start than to label


def processes_for(config: InterpretConfig, n_features: int) -> int:
    """How many processes label so many features: as many as torch may use threads.

    One if a scorer runs the model, or if whoever calls has a group of processes of their own.
    """
    run_models = any(name in SCORERS and not SCORERS[name].by_default for name in config.scorers_to_run)
    return (
        1
        if run_models or dist.is_initialized()
        else max(1, min(torch.get_num_threads(), MOST, n_features // FEATURES_EACH))
    )


@contextmanager
def helped(
    folder: Path, config: InterpretConfig, n: int, *, features: range | None = None, with_groups: bool = True
) -> Iterator[Processes]:
    """This process and n - 1 others, which call `interpret` with the same arguments; every one labels its share.

    What is published has the same bits as by one process. Raises `LostProcess` if another one ends early.
    """
    store = open_store(n)
    with ExitStack() as stack:
        chosen = "" if features is None else f"{features.start}-{features.stop}"
        arguments = [str(folder), config.model_dump_json(), chosen, str(int(with_groups)), str(n), str(store.port)]
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments, str(rank)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C is for the process that people see
            )
            for rank in range(1, n)
        ]
        try:
            yield stack.enter_context(local_group(store, 0, n))
        finally:
            for process in started:
                process.kill()  # those that have ended are not there to be killed
                process.wait()


def _no_model() -> LiveDictionary:
    raise AssertionError("processes that help run no scorer that needs the model")


def main(arguments: list[str]) -> None:
    """One of the further processes."""
    folder, config, chosen, with_groups, n, port, rank = arguments
    first, _, stop = chosen.partition("-")
    with local_group(join_store(int(port), int(n)), int(rank), int(n)) as processes:
        interpret(
            Path(folder),
            InterpretConfig.model_validate_json(config),
            _no_model,
            features=range(int(first), int(stop)) if chosen else None,
            with_groups=with_groups == "1",
            processes=processes,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
