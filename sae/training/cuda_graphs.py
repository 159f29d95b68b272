"""CUDA graphs of a function: the GPU repeats its kernels without waiting for Python to start each one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

MOST = 8


class Graphs:
    """Calls a function plainly the first time that a key is given (kernels are compiled then), records it the second time
    and repeats the recording from then on.

    The function may read and write only tensors that stay where they are; what it returns is overwritten by the next
    call of any key. All recordings of a process share one pool of memory, so they may run one after another only.
    """

    _pool: Any = None
    _anchor: Any = None  # a recording that is never dropped: a pool goes with the last recording in it

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}

    @classmethod
    def release(cls) -> None:
        """Lets go of the memory that recordings share, once they are gone."""
        cls._pool = cls._anchor = None

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """What the function returns, from a recording where there is one."""
        if key not in self._recorded:
            if key not in self._seen:
                self._seen.add(key)
                return function()
            self._record(key, function)
        graph, made = self._recorded[key]
        graph.replay()
        return made

    def _record(self, key: Hashable, function: Callable[[], Any]) -> None:
        if len(self._recorded) == MOST:
            self._recorded.pop(next(iter(self._recorded)))
        if Graphs._pool is None:
            Graphs._pool, Graphs._anchor = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(Graphs._anchor, pool=Graphs._pool):
                torch.zeros(1, device="cuda")
        graph = torch.cuda.CUDAGraph()
        # Exchanges between processes are watched by another thread, which may look at the device meanwhile.
        with torch.cuda.graph(graph, pool=Graphs._pool, capture_error_mode="thread_local"):
            made = function()
        self._recorded[key] = graph, made
