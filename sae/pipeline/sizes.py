"""Refuses settings that cannot fit this machine, before the text is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sae.errors import ConfigError
from sae.foundation.memory import Room, disk_left, memory_left
from sae.model.language_model import LanguageModel
from sae.pipeline.config import RunConfig

WEIGHT_BYTES = 4
MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2}  # both moments of a weight
NUMBER_BYTES = 2  # of an activation in the ring
TOKEN_BYTES = 6  # of a token on disk: its id and its document


class Need(NamedTuple):
    """A setting, what it asks for, and the bytes that this takes at least."""

    setting: str
    what: str
    n_bytes: int


def check_sizes(config: RunConfig, lm: LanguageModel, folder: Path, n_processes: int) -> None:
    """Raises `ConfigError` with every setting that asks for more than there is, the bytes it takes and those left.

    The bytes are what no run can do without; one that is let through may still be too large.
    """
    room = memory_left(lm.device)
    problems = [_said(need, room) for need in _memory(config, lm, n_processes) if need.n_bytes > room.n_bytes]

    disk = disk_left(folder)
    tokens = Need("train.tokens", "their ids", TOKEN_BYTES * config.train.tokens)
    if config.text.on_end == "fail" and tokens.n_bytes > disk.n_bytes:
        problems.append(_said(tokens, disk))

    if problems:
        raise ConfigError("too large for this machine\n  " + "\n  ".join(problems))


def _memory(config: RunConfig, lm: LanguageModel, n_processes: int) -> Iterator[Need]:
    per_weight = WEIGHT_BYTES + MOMENT_BYTES[config.train.moments]
    shares = 1 if config.train.parallel == "replicas" else n_processes
    sizes = {
        sae.name: per_weight * sae.d_sae * lm.d_model * (len(sae.reads) + len(sae.writes)) // shares
        for sae in config.sae
    }
    for number, sae in enumerate(config.sae):
        what = f"weights and Adam's moments of {sae.d_sae:,} latents of {sae.name}"
        yield Need(f"sae.{number}.d_sae", what, sizes[sae.name])
    if len(sizes) > 1:
        yield Need("sae", f"weights and Adam's moments of all {len(sizes)} dictionaries", sum(sizes.values()))

    if config.harvest.batch_contexts is not None:
        n_numbers = config.harvest.batch_contexts * config.text.ctx_len * lm.d_model
        yield Need("harvest.batch_contexts", "one layer's activations of a forward pass", NUMBER_BYTES * n_numbers)

    channels = {channel for sae in config.sae for channel in sae.channels}
    whole_text = config.train.tokens * lm.d_model * NUMBER_BYTES * len(channels)
    yield Need("shuffle.buffer_bytes", "the ring", min(config.shuffle.buffer_bytes, whole_text) // shares)


def _said(need: Need, room: Room) -> str:
    return (
        f"{need.setting}: {need.what} take at least {need.n_bytes / 1e9:,.1f} GB; "
        f"{room.n_bytes / 1e9:,.1f} GB are {room.limit}. Lower it."
    )
