"""Compact bytes of a feature's windows, and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Real, Shaped, UInt

WINDOW = np.dtype(
    [
        ("group", "<u1"),
        ("rank", "<u1"),
        ("stratum", "<u1"),
        ("length", "<u1"),
        ("peak", "<u1"),
        ("n_acts", "<u1"),
        ("copies", "<u2"),
        ("document", "<u4"),
        ("context", "<u4"),
        ("place", "<u4"),
        ("percentile", "<f4"),
        ("inclusion", "<f4"),
    ]
)
ACT_LEVELS = 65535
N_BINS = 32  # of a feature's activations, by their logarithm
N_STRATA = 8  # of them, each of N_BINS / 8 bins
RANDOM = -1  # in place of the feature of a window: the window is a random one
SILENT, FIRES, UNREADABLE = 0, 1, 2  # what was said of a window
JUDGED = np.dtype([("feature", "<i4"), ("number", "<u2"), ("fires", "?"), ("said", "u1")])
GROUPS = ("top", "stratum", "uniform")  # by number in a window's record


class Pack(NamedTuple):
    """One feature's windows: records, token ids and non-zero activations, each window after the other."""

    windows: Shaped[np.ndarray, " windows"]
    token_ids: Integer[np.ndarray, " tokens"]
    act_places: Integer[np.ndarray, " acts"]
    act_values: Real[np.ndarray, " acts"]


def quantise(acts: Float[np.ndarray, "*shape"], max_act: float) -> UInt[np.ndarray, "*shape"]:
    """Activations as uint16 shares of the feature's maximum, with an error of at most max_act / 131070."""
    return np.rint(acts / max_act * ACT_LEVELS).clip(1, ACT_LEVELS).astype("<u2")


def pack_columns(pack: Pack, id_dtype: str) -> tuple[bytes, ...]:
    """The four blobs of a row of `context_pack`."""
    return (
        pack.windows.astype(WINDOW).tobytes(),
        pack.token_ids.astype(id_dtype).tobytes(),
        pack.act_places.astype("<u1").tobytes(),
        pack.act_values.astype("<u2").tobytes(),
    )


def unpack_columns(columns: tuple[bytes, ...], id_bytes: int, max_act: float) -> Pack:
    """The inverse of `pack_columns`; activations are in their own units again."""
    windows, ids, places, values = columns
    acts = np.frombuffer(values, "<u2").astype(np.float32) * (max_act / ACT_LEVELS)
    return Pack(np.frombuffer(windows, WINDOW), np.frombuffer(ids, f"<u{id_bytes}"), np.frombuffer(places, "<u1"), acts)


def dense_acts(pack: Pack) -> Float[np.ndarray, " tokens"]:
    """Activations of all windows in a row, aligned with `token_ids`, zeros included."""
    starts = np.cumsum(pack.windows["length"], dtype=np.int64) - pack.windows["length"]
    acts = np.zeros(len(pack.token_ids), np.float32)
    acts[np.repeat(starts, pack.windows["n_acts"]) + pack.act_places] = pack.act_values
    return acts


def dense_windows(pack: Pack) -> list[tuple[Integer[np.ndarray, " _n"], Float[np.ndarray, " _n"]]]:
    """(token ids, activations) of every window, both as long as the window."""
    ends = np.cumsum(pack.windows["length"], dtype=np.int64)[:-1]
    if not len(pack.windows):
        return []
    return list(zip(np.split(pack.token_ids, ends), np.split(dense_acts(pack), ends), strict=True))
