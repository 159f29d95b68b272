"""The losses of 200 updates of every architecture, to the bit: what a change of the code's form must not move.

    python -m tests.golden_losses [ARCHITECTURE ...]

writes tests/golden/losses/ARCHITECTURE.txt anew (all without a name): the machine that the bits hold for, then a line
per update with loss, fvu and l0 as hexadecimal floats. The data are made up, the trainer is that of every run, in float32
on a CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m tests.golden_losses`
import bits

from sae.architectures import ARCHITECTURES
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activations import ActivationStatistics
from sae.training.trainer import SaeTrainer

FOLDER = Path(__file__).parent / "golden" / "losses"
N_UPDATES, N_ROWS, BATCH, WIDTH, N_FEATURES = 200, 4096, 128, 16, 48
LR = 0.003
SETTINGS = {
    "d_sae": 64, "k": 4, "k_aux": 8, "dead_after_tokens": 2000, "target_l0": 4.0, "sparsity_warmup_tokens": 4000,
    "threshold_tokens": 2000, "target": "mlp_out.0", "skip": True, "more_hooks": ["resid_post.1"],
}  # fmt: skip
COLUMNS = ("loss", "fvu", "l0")


def data(channel: Channel, number: int) -> torch.Tensor:
    """Rows [N_ROWS, WIDTH] of a channel: sums of a few of 48 directions, with the same code in every channel."""
    codes = torch.Generator().manual_seed(0)
    strength = torch.rand(N_ROWS, N_FEATURES, generator=codes)
    code = strength * (torch.rand(N_ROWS, N_FEATURES, generator=codes) < 0.06)
    directions = torch.randn(N_FEATURES, WIDTH, generator=torch.Generator().manual_seed(100 + number))
    if channel.kind != "activation":
        return 0.1 * torch.randn(N_ROWS, WIDTH, generator=torch.Generator().manual_seed(200 + number))
    return code @ F.normalize(directions, dim=1)


def statistics_of(x: torch.Tensor) -> ActivationStatistics:
    """What a run would measure on these rows."""
    norm, mean = float(x.norm(dim=1).median()), x.mean(0)
    variance = float((x - mean).square().sum(1).mean())
    return ActivationStatistics(norm, WIDTH**0.5 / norm, mean.tolist(), mean.tolist(), variance, None)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """As many threads as the record was made with."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(n)
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def losses_of(name: str) -> list[list[float]]:
    """loss, fvu and l0 of every update of an architecture."""
    config_class: Any = ARCHITECTURES[name].config_class
    known = {key: value for key, value in SETTINGS.items() if key in config_class.model_fields}
    if name == "jumprelu":  # it can be a transcoder or a crosscoder too; the record is of an autoencoder
        del known["target"], known["skip"], known["more_hooks"]
    hook = "mlp_in.0" if "target" in known else "resid_post.0"
    config = config_class.model_validate({"name": "x", "architecture": name, "hook": hook, **known})
    with threads(bits.THREADS):
        rows = {channel: data(channel, number) for number, channel in enumerate(config.channels)}
        hooks: tuple[HookPoint, ...] = (*config.reads, *config.writes)
        norm = None if config.gradient is None else float(rows[config.gradient].norm(dim=1).mean())
        trainer = SaeTrainer(
            config, {hook: statistics_of(rows[Channel(hook)]) for hook in hooks}, seed=0, dtype=torch.float32,
            device="cpu", gradient_norm=norm,
        )  # fmt: skip
        lines = []
        for update in range(N_UPDATES):
            first = update * BATCH % N_ROWS
            trainer.step({channel: x[first : first + BATCH] for channel, x in rows.items()}, LR)
            line = trainer.log_line(LR)
            lines.append([float(line[column]) for column in COLUMNS])
    return lines


def written(name: str) -> str:
    """The content of an architecture's file on this machine."""
    lines = [" ".join(map(float.hex, line)) for line in losses_of(name)]
    return "\n".join([json.dumps(bits.machine()), *lines]) + "\n"


def stored(name: str) -> tuple[dict[str, Any], list[list[float]]]:
    """The machine and the figures of an architecture's file; raises `FileNotFoundError` if there is none."""
    machine, *lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return json.loads(machine), [[float.fromhex(number) for number in line.split()] for line in lines]


def main() -> None:
    """Writes the files of the architectures named on the command line, or of all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or ARCHITECTURES:
        (FOLDER / f"{name}.txt").write_text(written(name))
        print(f"{FOLDER.name}/{name}.txt")


if __name__ == "__main__":
    main()
