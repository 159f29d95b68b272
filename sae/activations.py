"""Segments of harvested activations: from disk where they are kept, from the language model otherwise."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import DataError
from sae.files import write_json
from sae.harvest import Harvester
from sae.hookpoints import HookPoint
from sae.metrics import geometric_median
from sae.tokens import Contexts

TYPICAL_NORM_MULTIPLE = 3.0
SAMPLE_ROWS = 8192


class Segment(NamedTuple):
    """Rows of one hook point: x [rows, d_model] in bfloat16 and their places in the token stream [rows]."""

    x: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Statistics:
    """What the first segment says of a hook point: the input scale, the centre, and the limit of the norm filter."""

    median_norm: float
    scale: float
    centre: list[float]
    variance: float
    max_norm: float | None


class Activations:
    """`segment(hook, g)` for a stream of contexts; every segment is the same bits whenever it is asked for."""

    def __init__(
        self,
        harvester: Harvester,
        contexts: Contexts,
        segment_contexts: int,
        folder: Path | None,
        training: Activations | None = None,
    ):
        self.harvester, self.contexts, self.folder = harvester, contexts, folder
        self.segment_contexts = segment_contexts
        self.n_segments = -(-contexts.n_contexts // segment_contexts)
        self.harvested_tokens, self.harvest_s = 0, 0.0
        self._statistics: dict[HookPoint, Statistics] = {}
        self._training = training  # the stream whose statistics hold; none: this one's own
        self._last: tuple[int, dict[HookPoint, Segment]] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def segment(self, hook: HookPoint, number: int) -> Segment:
        """The rows of one segment after all filters, in the order of the stream."""
        kept = self._all(number)[hook]
        limit = self.statistics(hook).max_norm if self.harvester.config.max_norm_multiple else None
        if limit is None:
            return kept
        inside = kept.x.float().norm(dim=1) <= limit
        return Segment(kept.x[inside], kept.positions[inside])

    def _all(self, number: int) -> dict[HookPoint, Segment]:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        found = self._read(number)
        if found is None:
            found = self._harvest(number)
            self._write(number, found)
        self._last = (number, found)
        return found

    def _harvest(self, number: int) -> dict[HookPoint, Segment]:
        start = time.perf_counter()
        first = number * self.segment_contexts
        rows = slice(first, min(first + self.segment_contexts, self.contexts.n_contexts))
        batch = self.harvester.harvest(self.contexts.ids[rows], self.contexts.documents[rows])
        positions = batch.keep.reshape(-1).nonzero()[:, 0] + first * self.contexts.ctx_len
        self.harvested_tokens += batch.keep.numel()
        segments = {
            hook: Segment(x[batch.keep].to(torch.bfloat16), positions.cpu().to(torch.int64))
            for hook, x in batch.x.items()
        }
        self.harvest_s += time.perf_counter() - start
        return segments

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"segment-{number:06d}.safetensors"

    def _read(self, number: int) -> dict[HookPoint, Segment] | None:
        path = self._path(number)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, "pt", device=str(self.harvester.lm.device)) as file:
                positions = file.get_tensor("positions").cpu()
                return {hook: Segment(file.get_tensor(str(hook)), positions) for hook in self.harvester.hooks}
        except SafetensorError:
            return None  # cut short by a power loss: it is harvested again

    def _write(self, number: int, segments: dict[HookPoint, Segment]) -> None:
        path = self._path(number)
        if path is None:
            return
        tensors = {str(hook): segment.x for hook, segment in segments.items()}
        tensors["positions"] = next(iter(segments.values())).positions
        temporary = path.with_suffix(".writing")
        save_file(tensors, temporary)
        temporary.replace(path)

    def unfiltered(self, hook: HookPoint, number: int) -> int:
        """Rows of one segment before the norm filter."""
        return len(self._all(number)[hook].positions)

    def trained_rows(self) -> int:
        """Rows of the whole stream that training can use, before the norm filter."""
        total = 0
        for start in range(0, self.contexts.n_contexts, 4096):
            ids = torch.from_numpy(self.contexts.ids[start : start + 4096].astype(np.int64))
            total += int(self.harvester.keep(ids.to(self.harvester.lm.device)).sum())
        if total == 0:
            raise DataError("harvest: every position is filtered out. Relax harvest.drop_positions or drop_special.")
        return total

    def statistics(self, hook: HookPoint) -> Statistics:
        """Statistics of the training stream's first segment, computed once and kept beside the segments."""
        if self._training is not None:
            return self._training.statistics(hook)
        if hook in self._statistics:
            return self._statistics[hook]
        path = self.folder / f"{hook}.json" if self.folder is not None else None
        if path is not None and path.exists():
            self._statistics[hook] = Statistics(**json.loads(path.read_text()))
        else:
            self._statistics[hook] = _measure(self._all(0)[hook].x, self.harvester.config.max_norm_multiple)
            if path is not None:
                write_json(path, vars(self._statistics[hook]))
        return self._statistics[hook]


def _measure(x: Tensor, max_norm_multiple: float | None) -> Statistics:
    """The scale gives rows a median norm of sqrt(d_model); a median, so massive activations do not move it."""
    norms = x.float().norm(dim=1)
    median = float(norms.median())
    typical = x[norms <= TYPICAL_NORM_MULTIPLE * median]
    step = max(1, len(typical) // SAMPLE_ROWS)
    sample = typical[::step].float()
    scale = x.shape[1] ** 0.5 / median
    centre = geometric_median(sample)
    variance = float((sample - sample.mean(0)).square().sum(1).mean())
    limit = None if max_norm_multiple is None else median * max_norm_multiple
    return Statistics(median, scale, centre.tolist(), variance, limit)
