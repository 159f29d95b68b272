"""The processes of one run under torchrun: who this one is, and the exchanges between them."""

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
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from sae.errors import LostProcess, SaedexError, StoppedByPeer, UnavailableError, exit_code_of

# A process that dies is noticed at once; one that hangs inside an exchange is noticed after this time.
EXCHANGE_TIMEOUT = timedelta(minutes=5)
# Rank 0 may read text or ask a judge for days while the others wait in `on_first`.
WAIT_TIMEOUT = timedelta(days=7)
T = TypeVar("T")


class Started:
    """An exchange that has begun. On a GPU its result is waited for by the GPU, not by Python."""

    def __init__(self, tensor: Tensor, work: Any, *sent: Tensor):
        self._tensor, self._work, self._sent = tensor, work, sent  # what is sent has to stay until then

    def result(self) -> Shaped[Tensor, " ..."]:
        """The tensor, once it has arrived."""
        if self._work is not None:
            _exchange(self._work.wait)
            self._work, self._sent = None, ()
        return self._tensor


class Processes:
    """The processes that share a run, seen from one of them (`rank` of `world_size`).

    With a world size of 1 every exchange returns its argument. Tensors are exchanged on their device (NCCL or gloo),
    Python values through gloo, which may wait long. Every process must call the same exchanges in the same order. If a
    process is lost, the others raise `LostProcess`.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, patient_group: Any = None):
        self.rank, self.world_size = rank, world_size
        self._patient_group = patient_group  # a gloo group with WAIT_TIMEOUT, for Python values

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes whatever is written once."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's share of n items in a row: shares are nearly equal and follow the ranks."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all processes, in place."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def start_all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Started:
        """Begins `all_reduce_sum`; other work may go on until its result is asked for."""
        work = _exchange(dist.all_reduce, tensor, async_op=True) if self.world_size > 1 else None
        return Started(tensor, work)

    def all_reduce_max(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The element-wise maximum over all processes, in place."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def all_reduce_min(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The element-wise minimum over all processes, in place."""
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: Tensor, op: Any) -> Tensor:
        if self.world_size > 1:
            _exchange(dist.all_reduce, tensor, op=op)
        return tensor

    def start_all_to_all(self, rows: Shaped[Tensor, " n *shape"]) -> Started:
        """Begins to bring every process's rows [n, ...] of this process's `share`, [world_size, share, ...] by rank.

        n is a multiple of the world size.
        """
        out = torch.empty_like(rows) if self.world_size > 1 else rows
        work = _exchange(dist.all_to_all_single, out, rows, async_op=True) if self.world_size > 1 else None
        return Started(out.unflatten(0, (self.world_size, -1)), work, rows)

    def start_all_gather_shares(self, rows: Shaped[Tensor, " n *shape"]) -> Started:
        """Begins to fill `rows` [n, ...] in place with every process's `share` of it; n is a multiple of the world size."""
        work = None
        if self.world_size > 1:
            gather = _collective("all_gather_single", "all_gather_into_tensor")
            work = _exchange(gather, rows, rows[self.share(len(rows))], async_op=True)
        return Started(rows, work)

    def all_gather_shares(self, rows: Shaped[Tensor, " n *shape"]) -> Shaped[Tensor, " n *shape"]:
        """`start_all_gather_shares`, and waits for it."""
        return self.start_all_gather_shares(rows).result()

    def all_gather_columns(self, tensor: Shaped[Tensor, "n k"]) -> Shaped[Tensor, "n columns"]:
        """The tensors [n, k] of all processes side by side, [n, world_size * k]."""
        if self.world_size == 1:
            return tensor
        out = tensor.new_empty(self.world_size, *tensor.shape)
        out[self.rank] = tensor
        return self.all_gather_shares(out).movedim(0, 1).flatten(1)

    def all_gather_rows(self, rows: Shaped[Tensor, " own *shape"], counts: list[int]) -> Shaped[Tensor, " rows *shape"]:
        """The rows of all processes one after another; rank r has `counts[r]` of them."""
        if self.world_size == 1:
            return rows
        # An all-gather wants equal shapes: rows are padded to the longest share and cut again.
        out = rows.new_empty(self.world_size, max(counts), *rows.shape[1:])
        out[self.rank, : len(rows)] = rows
        self.all_gather_shares(out)
        return torch.cat([out[rank, :count] for rank, count in enumerate(counts)])

    def all_gather_objects(self, value: T) -> list[T]:
        """The Python value of every process, by rank."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            _exchange(dist.all_gather_object, values, value, group=self._patient_group)
        return values

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.all_gather_objects(None)

    def raise_together(self, work: Callable[[], T]) -> T:
        """Runs `work` (which must exchange nothing); an error of one process is raised by all of them."""
        result: Any = None
        failure: SaedexError | None = None

        try:
            result = work()
        except SaedexError as error:
            failure = error

        for error in self.all_gather_objects(failure):
            if error is not None:
                raise error

        return result

    def on_first(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 and returns its result everywhere.

        An error is raised on rank 0; the other processes end quietly with `StoppedByPeer`.
        """
        if self.world_size == 1:
            return work()

        result_and_exit_code: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_first:
            try:
                result_and_exit_code[0] = work()
            except Exception as error:
                failure, result_and_exit_code[1] = error, exit_code_of(error)

        _exchange(dist.broadcast_object_list, result_and_exit_code, src=0, group=self._patient_group)
        if failure is not None:
            raise failure
        if result_and_exit_code[1] is not None:
            raise StoppedByPeer(result_and_exit_code[1])

        return result_and_exit_code[0]


ALONE = Processes()


def _collective(new_name: str, old_name: str) -> Callable[..., Any]:
    """A collective of torch.distributed, under the name that the installed torch has for it."""
    return getattr(dist, new_name, None) or getattr(dist, old_name)


def _exchange(collective: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return collective(*arguments, **options)
    except (RuntimeError, dist.DistError) as error:  # gloo raises the first, NCCL and the store the second
        first_line = str(error).splitlines()[0]
        raise LostProcess(
            f"another process of this run is lost or did not answer in {EXCHANGE_TIMEOUT.total_seconds():.0f} s "
            f"({first_line}). The last checkpoint is sound; the same command goes on from there."
        ) from error


def check_devices(n_processes: int, n_devices: int) -> None:
    """Raises `UnavailableError` if there are more processes on this machine than GPUs."""
    if n_processes > n_devices:
        raise UnavailableError(
            f"torchrun started {n_processes} processes on a machine with {n_devices} GPU{'s' * (n_devices != 1)}; each needs one. "
            f"Give --nproc-per-node {n_devices}."
        )


@contextmanager
def connected() -> Iterator[Processes]:
    """The processes that torchrun started together with this one; `ALONE` without torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return

    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    numba.set_num_threads(max(1, min(cores, numba.get_num_threads())))
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Else an exchange waits until all of a kernel that was started before it has run, and nothing overlaps.
        os.environ.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")

    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=EXCHANGE_TIMEOUT)
        patient_group = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
    except (RuntimeError, dist.DistError) as error:
        raise LostProcess(f"the processes of this run did not find one another: {error}") from error

    yield Processes(dist.get_rank(), dist.get_world_size(), patient_group)
    # Not in a `finally`: after an error this would wait for a process that may be lost.
    dist.destroy_process_group()


def open_store(n: int) -> TCPStore:
    """A store at a free port of this machine, by which n processes find one another."""
    return TCPStore("127.0.0.1", 0, n, is_master=True, wait_for_workers=False, timeout=EXCHANGE_TIMEOUT)


def join_store(port: int, n: int) -> TCPStore:
    """The store that another process opened."""
    return TCPStore("127.0.0.1", port, n, is_master=False, timeout=EXCHANGE_TIMEOUT)


@contextmanager
def local_group(store: TCPStore, rank: int, n: int) -> Iterator[Processes]:
    """n processes of this machine that exchange Python values alone, whether or not there are GPUs."""
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=n, timeout=WAIT_TIMEOUT)
    except (RuntimeError, dist.DistError) as error:
        raise LostProcess(f"the processes of this run did not find one another: {error}") from error
    try:
        yield Processes(rank, n)
    finally:
        dist.destroy_process_group()  # gloo alone leaves without the others


def exit_process(code: int) -> int:
    """Returns the exit code; under torchrun the process ends here with it.

    Threads of libraries that still run while the interpreter shuts down can abort it ("terminate called without an
    active exception", once in some twenty runs), and a complete run would count as a lost process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
