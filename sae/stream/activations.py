"""Segments of harvested activations: read from disk if they are stored, else harvested from the language model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ArtefactError, DataError
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import read_sealed, write_sealed
from sae.foundation.metrics import geometric_median
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activation_cache import ActivationCache
from sae.stream.harvest import Harvester
from sae.stream.shuffle import ShuffleConfig, segment_contexts
from sae.text.tokens import Contexts

TYPICAL_NORM_MULTIPLE = 3.0  # of the median: fvu of typical tokens leaves out the few whose norm outweighs all others
MEAN_TOKENS = 1 << 14  # fixed, so that the mean does not depend on the size of a segment
SAMPLE_ROWS = 8192  # rows that scale, centre and variance are estimated from, before training


class Segment(NamedTuple):
    """x[channel] [rows, width] in bfloat16 and the rows' places in the token stream [rows]."""

    x: dict[Channel, Float[Tensor, "rows _width"]]
    positions: Int[Tensor, " rows"]

    def rows(self, hooks: tuple[HookPoint, ...]) -> Float[Tensor, "rows width"]:
        """Activations of hook points side by side, [rows, sum of widths]."""
        parts = [self.x[Channel(hook)] for hook in hooks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def select(self, inside: Bool[Tensor, " rows"]) -> Segment:
        """The rows that a boolean tensor [rows] marks."""
        return Segment({c: x[inside] for c, x in self.x.items()}, self.positions[inside.cpu()])


@dataclass(frozen=True)
class ActivationStatistics:
    """What the first segment says about a hook point: the input scale, the centres, and the limit of the norm filter."""

    median_norm: float
    scale: float
    centre: list[float]  # the geometric median
    mean: list[float]
    variance: float
    max_norm: float | None


def segment_size(harvester: Harvester, contexts: Contexts, shuffle: ShuffleConfig) -> int:
    """Contexts per segment such that the ring fits its budget; on a GPU whole forward passes, if they fit."""
    device, ctx_len = harvester.lm.device, contexts.ctx_len
    bytes_per_context = ctx_len * 2 * sum(harvester.width(channel.hook) for channel in harvester.channels)
    per_pass = harvester.config.contexts_per_pass(ctx_len, device) if device.type == "cuda" else 1
    return segment_contexts(shuffle, bytes_per_context, contexts.n_contexts, per_pass)


class Activations:
    """A stream of contexts as segments of activations; a segment has the same bits every time.

    `folder` keeps the statistics, `cache` the segments. If several processes share the stream, each has a part of the
    contexts of every segment, and statistics are over all of them. `training` is the stream whose statistics are used.
    """

    def __init__(
        self,
        harvester: Harvester,
        contexts: Contexts,
        segment_contexts: int,
        *,
        folder: Path | None,
        training: Activations | None = None,
        cache: ActivationCache | None = None,
        processes: Processes = ALONE,
    ):
        self.processes = processes
        self.harvester, self.contexts, self.folder = harvester, contexts, folder
        self.segment_contexts, self.cache = segment_contexts, cache
        self.n_segments = -(-contexts.n_contexts // segment_contexts)
        self.harvest_s = 0.0
        self._statistics: dict[HookPoint, ActivationStatistics] = {}
        self.training = training  # the stream whose statistics are used; None: this one's own
        self._means: dict[HookPoint, Tensor] = {}
        self._samples: dict[HookPoint, Tensor] = {}
        self._mean_norms: dict[Channel, float] = {}
        self._last: tuple[int, Segment] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def segment(self, number: int) -> Segment:
        """The rows of one segment after all filters, in the order of the stream.

        The norm filter keeps a row if its norm is within the limit at every hook point.
        """
        segment = self._all(number)
        filtered = self.harvester.config.max_norm_multiple is not None
        return segment.select(self.within_norm(segment.x)) if filtered else segment

    def within_norm(self, x: dict[Channel, Float[Tensor, "*shape _width"]]) -> Bool[Tensor, "*shape"]:
        """Which rows [...] of x[channel] [..., width] pass the norm filter; all of them without one."""
        first = next(iter(x.values()))
        inside = torch.ones(first.shape[:-1], dtype=torch.bool, device=first.device)
        for channel, rows in x.items():
            limit = self.statistics(channel.hook).max_norm if channel.kind == "activation" else None
            if limit is not None:
                inside &= rows.float().norm(dim=-1) <= limit
        return inside

    def _all(self, number: int) -> Segment:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        part = self.contexts_of(number)
        if self.cache is None or part.start == part.stop:
            x, places = self._harvest(part)
        else:
            x, places = self.cache.rows(*self._read_of(part), lambda: self._harvest(part))
        segment = Segment(x, places + part.start * self.contexts.ctx_len)
        self._last = (number, segment)
        return segment

    def _harvest(self, part: slice) -> tuple[dict[Channel, Tensor], Tensor]:
        """(the rows of these contexts that pass the position filters, their places among the contexts' tokens)."""
        start = time.perf_counter()
        none = part.start == part.stop  # more processes than contexts: this one reads a context and drops it
        batch = self.harvester.harvest(*self._read_of(slice(0, 1) if none else part))
        batch.keep[part.stop - part.start :] = False
        positions = batch.keep.reshape(-1).nonzero()[:, 0]
        x = {channel: x[batch.keep].to(torch.bfloat16) for channel, x in batch.x.items()}
        self.harvest_s += time.perf_counter() - start
        return x, positions.cpu().to(torch.int64)

    def contexts_of(self, number: int) -> slice:
        """This process's contexts of a segment."""
        first = number * self.segment_contexts
        share = self.processes.share(min(self.segment_contexts, self.contexts.n_contexts - first))
        return slice(first + share.start, first + share.stop)

    def check_disk_space(self) -> None:
        """Says how much will be stored on disk; raises `ConfigError` if there is no room for it."""
        if self.cache is not None:
            parts = (self.contexts_of(number) for number in range(self.n_segments))
            files = ((self.cache.path(*self._read_of(p)), (p.stop - p.start) * self.contexts.ctx_len) for p in parts)
            self.cache.check_disk_space(sum(self.processes.all_gather_objects(self.cache.missing_bytes(files))))

    def _read_of(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        return self.contexts.ids[part], self.contexts.documents[part]

    def kept_share(self) -> float:
        """Share of the first segment's rows that pass the norm filter."""
        counts = self.processes.all_gather_objects((len(self.segment(0).positions), len(self._all(0).positions)))
        return sum(kept for kept, _ in counts) / sum(whole for _, whole in counts)

    def trained_rows(self) -> int:
        """Rows of the whole stream that training can use, before the norm filter."""
        total = 0
        for start in range(0, self.contexts.n_contexts, 4096):
            ids, documents = self._read_of(slice(start, start + 4096))
            tokens = torch.from_numpy(ids.astype(np.int64)).to(self.harvester.lm.device)
            total += int(self.harvester.keep(tokens, documents).sum())
        if total == 0:
            raise DataError("harvest: every position is filtered out. Relax harvest.drop_positions or drop_special.")
        return total

    def statistics(self, hook: HookPoint) -> ActivationStatistics:
        """Statistics of the training stream's first segment, computed once and stored beside the segments."""
        if self.training is not None:
            return self.training.statistics(hook)
        if hook not in self._statistics:
            path = self.folder / f"{hook}.json" if self.folder is not None else None

            def stored() -> ActivationStatistics | None:
                return _stored(path) if path is not None and path.exists() else None

            statistics = self.processes.on_first(stored)
            if statistics is None:
                rows = self._first(Channel(hook))
                statistics = self.processes.on_first(lambda: _measure(rows, self.harvester.config.max_norm_multiple))
                if path is not None and self.processes.is_first:
                    write_sealed(path, vars(statistics))
            self._statistics[hook] = statistics

        return self._statistics[hook]

    def _first(self, channel: Channel) -> Tensor:
        """A channel's rows in the first segment, of all processes."""
        own_rows = self._all(0).x[channel]
        return self.processes.all_gather_rows(own_rows, self.processes.all_gather_objects(len(own_rows)))

    def sample(self, hook: HookPoint) -> Float[Tensor, "rows width"]:
        """At most 8,192 evenly spaced rows of the training stream's first segment, of all processes."""
        if hook not in self._samples:
            rows = self._first(Channel(hook))
            self._samples[hook] = rows[:: max(1, -(-len(rows) // SAMPLE_ROWS))].clone()
        return self._samples[hook]

    def measure(self) -> None:
        """Computes all statistics in all processes at once, so that each can read them alone afterwards."""
        for channel in self.harvester.channels:
            self.statistics(channel.hook)
            self.sample(channel.hook)
            if channel.kind != "activation":
                self.mean_norm(channel)

    def training_mean(self, hook: HookPoint) -> Float[Tensor, " width"]:
        """Mean activation of a hook point over the training stream's first `MEAN_TOKENS` tokens, as far as kept."""
        if self.training is not None:
            return self.training.training_mean(hook)
        if hook not in self._means:
            self._means[hook] = self._mean_of_first_tokens(hook)
        return self._means[hook]

    def _mean_of_first_tokens(self, hook: HookPoint) -> Tensor:
        rows = []
        for number in range(self.n_segments):
            segment = self.segment(number)
            inside = segment.positions < MEAN_TOKENS
            rows.append(segment.select(inside).x[Channel(hook)].float())
            if not inside.all():
                break
        return torch.cat(rows).mean(0)

    def mean_norm(self, channel: Channel) -> float:
        """Mean norm of a channel's rows in the training stream's first segment."""
        if self.training is not None:
            return self.training.mean_norm(channel)
        if channel not in self._mean_norms:
            self._mean_norms[channel] = float(self._first(channel).float().norm(dim=1).mean())
        return self._mean_norms[channel]


def _stored(path: Path) -> ActivationStatistics:
    try:
        return ActivationStatistics(**read_sealed(path))
    except TypeError as error:
        raise ArtefactError(f"{path}: not statistics of activations ({error}); the file is damaged.") from None


def _measure(x: Tensor, max_norm_multiple: float | None) -> ActivationStatistics:
    """The scale gives rows a median norm of sqrt(d_model); a median, so massive activations do not move it."""
    norms = x.float().norm(dim=1)
    median = float(norms.median())
    typical = x[norms <= TYPICAL_NORM_MULTIPLE * median]
    step = max(1, len(typical) // SAMPLE_ROWS)
    sample = typical[::step].float()
    scale = x.shape[1] ** 0.5 / median
    centre, mean = geometric_median(sample), sample.mean(0)
    variance = float((sample - mean).square().sum(1).mean())
    limit = None if max_norm_multiple is None else median * max_norm_multiple

    return ActivationStatistics(median, scale, centre.tolist(), mean.tolist(), variance=variance, max_norm=limit)
