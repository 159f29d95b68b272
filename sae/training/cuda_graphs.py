"""CUDA graphs of a function: the GPU repeats its kernels without waiting for Python to launch each one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_RECORDED = 8  # one per number of slots for dead latents and per batch size; each holds the memory of an update


class CudaGraphs:
    """Repeats a function from a recording.

    The first call with a key runs the function plainly (kernels are compiled then), the second records it, all further
    ones repeat the recording. The function may read and write only tensors that stay at their address; what it returns
    is overwritten by the next call with any key. All recordings of a process share one pool of memory, so they may only
    run one after another.
    """

    _pool: Any = None
    # torch frees a pool with the last recording in it, and the next capture then fails an internal assertion. So one
    # recording is kept for ever.
    _anchor: Any = None

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}

    @classmethod
    def release(cls) -> None:
        """Frees the memory that recordings share, once they are gone."""
        cls._pool = cls._anchor = None

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """What the function returns, from a recording if there is one."""
        if key not in self._recorded:
            if key not in self._seen:
                self._seen.add(key)
                return function()
            self._record(key, function)
        graph, result = self._recorded[key] = self._recorded.pop(key)  # the oldest use comes first
        graph.replay()
        return result

    def _record(self, key: Hashable, function: Callable[[], Any]) -> None:
        if len(self._recorded) == MOST_RECORDED:
            self._recorded.pop(next(iter(self._recorded)))
        if CudaGraphs._pool is None:
            CudaGraphs._pool, CudaGraphs._anchor = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(CudaGraphs._anchor, pool=CudaGraphs._pool):
                torch.zeros(1, device="cuda")

        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog thread may query the device meanwhile; only this thread's calls must be capturable.
        with torch.cuda.graph(graph, pool=CudaGraphs._pool, capture_error_mode="thread_local"):
            result = function()

        self._recorded[key] = graph, result


class SideStream:
    """Kernels beside others: what is started in `beside` may run while the main stream goes on, until `join`.

    Whoever uses it keeps every tensor that the work reads until it has joined. Without a GPU everything runs in turn.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside the block kernels are started beside the main stream, after what it was given before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """The main stream goes on once the work beside it is done."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
