"""The processes of one run under torchrun: who I am, sums and rows over all of them, and waiting for one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numba
import torch
import torch.distributed as dist
from torch import Tensor

from sae.errors import Elsewhere, LostProcess, SaedexError

TIMEOUT = timedelta(
    minutes=5
)  # of a step's exchange; a process that is lost is noticed at once, one that hangs after this
PATIENCE = timedelta(days=7)  # for what the first process does alone
T = TypeVar("T")


class Group:
    """This process among `size`; alone, every exchange gives back what it was given.

    Exchanges of tensors run on their device (NCCL or gloo); those of Python values run through gloo and may wait long.
    Every process must call the same exchanges in the same order. A process that is lost ends the others with `LostProcess`.
    """

    def __init__(self, rank: int = 0, size: int = 1, slow: Any = None):
        self.rank, self.size, self._slow = rank, size, slow

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's share of n things in a row: nearly equal shares, in the order of the processes."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            _exchanged(dist.all_reduce, tensor)
        return tensor

    def least(self, tensor: Tensor) -> Tensor:
        """The smallest of all processes, number by number, in place."""
        if self.size > 1:
            _exchanged(dist.all_reduce, tensor, op=dist.ReduceOp.MIN)
        return tensor

    def share_of_sum(self, rows: Tensor) -> Tensor:
        """This process's `part` of the sum over all processes of `rows` [n, ...]; n is a multiple of `size`."""
        if self.size == 1:
            return rows
        out = rows.new_empty(len(rows) // self.size, *rows.shape[1:])
        _exchanged(_named("reduce_scatter_single", "reduce_scatter_tensor"), out, rows)
        return out

    def complete(self, rows: Tensor) -> Tensor:
        """`rows` [n, ...] in place, every process's `part` from that process; n is a multiple of `size`."""
        if self.size > 1:
            _exchanged(_named("all_gather_single", "all_gather_into_tensor"), rows, rows[self.part(len(rows))])
        return rows

    def beside(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape [n, k] of all processes side by side, [n, size * k]."""
        if self.size == 1:
            return tensor
        out = tensor.new_empty(self.size, *tensor.shape)
        out[self.rank] = tensor
        return self.complete(out).movedim(0, 1).flatten(1)

    def join(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Rows of all processes one after another; process r has `counts[r]` of them."""
        if self.size == 1:
            return rows
        most = max(counts)
        out = rows.new_empty(self.size, most, *rows.shape[1:])
        out[self.rank, : len(rows)] = rows
        self.complete(out)
        return torch.cat([out[r, :n] for r, n in enumerate(counts)])

    def values(self, value: T) -> list[T]:
        """A Python value of every process."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            _exchanged(dist.all_gather_object, found, value, group=self._slow)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What `work`, which exchanges nothing, returns in this process; what it raises in one, all processes raise."""
        made: Any = None
        failed: SaedexError | None = None
        try:
            made = work()
        except SaedexError as error:
            failed = error
        for error in self.values(failed):
            if error is not None:
                raise error
        return made

    def wait(self) -> None:
        """Returns when every process is here."""
        self.values(None)

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process; where it raises there, the others end quietly with `Elsewhere`."""
        if self.size == 1:
            return work()
        made: list[Any] = [None, None]
        failed: Exception | None = None
        if self.first:
            try:
                made[0] = work()
            except Exception as error:
                failed, made[1] = error, getattr(error, "exit_code", SaedexError.exit_code)
        _exchanged(dist.broadcast_object_list, made, src=0, group=self._slow)
        if failed is not None:
            raise failed
        if made[1] is not None:
            raise Elsewhere(made[1])
        return made[0]


ALONE = Group()


def _named(new: str, old: str) -> Callable[..., Any]:
    """A collective under the name that this version of torch has for it."""
    return getattr(dist, new, None) or getattr(dist, old)


def _exchanged(collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    try:
        collective(*arguments, **options)
    except (RuntimeError, dist.DistError) as error:  # gloo raises the first, NCCL and the store the second
        first_line = str(error).splitlines()[0]
        raise LostProcess(
            f"another process of this run is lost or did not answer in {TIMEOUT.total_seconds():.0f} s ({first_line}). "
            "The last checkpoint is sound; the same command goes on from there."
        ) from error


@contextmanager
def processes() -> Iterator[Group]:
    """The processes that torchrun started this one with; alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    numba.set_num_threads(max(1, min(share, numba.get_num_threads())))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
        slow = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, dist.DistError) as error:
        raise LostProcess(f"the processes of this run did not find one another: {error}") from error
    yield Group(dist.get_rank(), dist.get_world_size(), slow)
    dist.destroy_process_group()  # after an error the process ends as it is: a lost one must not be waited for


def leave(code: int) -> int:
    """The exit code; under torchrun the process ends here with it.

    Threads of libraries that are still there while the interpreter closes down can abort it (once in some twenty runs
    "terminate called without an active exception"), and a run that is complete would count as a lost one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
