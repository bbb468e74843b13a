"""Agreement between the processes of one run: counts, failures, when to stop. A single process needs none of it.

A launcher (`torchrun`, `deepspeed`, or SLURM with `RANK` and the like set) starts one process per device, called a
*rank*. All ranks must call the same methods in the same order. A rank that fails between two calls reports it at the
end of a `fail_together` block, so that all ranks stop with the reason instead of waiting for it. When a rank is killed,
the others end as soon as its connection breaks, or after `deepspeed.timeout` seconds.

These messages are small and go over gloo on the CPU; the engine exchanges gradients and weights itself.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from dimvl.config import RunConfig
from dimvl.errors import NotFiniteError, OtherRankError, UserError
from dimvl.regions.parts import launcher_number

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of one run."""

    rank: int  # this process, counted from 0
    size: int  # number of processes
    waited: float  # seconds that this process has spent in the methods below, mostly waiting for the others

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum arrays of one shape over ranks; float64 and int64."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks; they should be small and plain."""
        ...


class SingleProcess:
    """The only process of a run."""

    rank = 0
    size = 1
    waited = 0.0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the values themselves."""
        return values

    def gather(self, value: T) -> list[T]:
        """Return the one value."""
        return [value]


class ProcessGroup:
    """The processes of a torch process group over gloo; None is the default one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self.waited = dist.get_rank(), dist.get_world_size(), 0.0
        self._group = group

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum arrays of one shape over ranks."""
        total = torch.from_numpy(values.copy())
        with self._waiting():
            dist.all_reduce(total, group=self._group)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start


def all_ranks(ranks: Ranks, flag: bool) -> bool:
    """Logical AND over ranks."""
    return bool(ranks.sum(np.array([flag], dtype=np.int64))[0] == ranks.size)


def any_rank(ranks: Ranks, flag: bool) -> bool:
    """Logical OR over ranks."""
    return bool(ranks.sum(np.array([flag], dtype=np.int64))[0])


@contextmanager
def fail_together(ranks: Ranks) -> Iterator[None]:
    """If the block fails on one rank, stop all ranks at its end; the block must not contain a collective call.

    Raises:
        OtherRankError: another rank failed; the rank that failed raises its own error.

    """
    failure: tuple[str, int] | None = None
    try:
        yield
    except Exception as error:
        failure = _message_and_code(error)
        any_rank(ranks, True)
        ranks.gather(failure)
        if isinstance(error, UserError):
            error.reported = True
        raise
    if any_rank(ranks, False):
        rank, (message, code) = next((rank, failed) for rank, failed in enumerate(ranks.gather(failure)) if failed)
        raise OtherRankError(f"rank {rank}: {message}", code)


def on_rank_zero(ranks: Ranks, action: Callable[[], T]) -> T:
    """Run an action on rank 0 only and return its result, small and plain, on all ranks; fails as `fail_together`."""
    result = None
    with fail_together(ranks):
        if ranks.rank == 0:
            result = action()
    value: Any = ranks.gather(result)[0]
    return value


def _message_and_code(error: Exception) -> tuple[str, int]:
    if isinstance(error, UserError | NotFiniteError):
        return str(error), 2 if isinstance(error, UserError) else 1
    return f"{type(error).__name__}: {error}", 1


def check_same(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Check that something has the same value on every rank as on rank 0.

    Args:
        ranks: all of them call this.
        facts: plain values by name; the error message contains the name.

    Raises:
        UserError: on every rank, naming the first fact that differs and both values.

    """
    first, *others = ranks.gather(dict(facts))
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                error = UserError(
                    f"rank {rank} has a different {name} from rank 0 ({other.get(name)!r}, not {first.get(name)!r}); "
                    "start every rank with the same configuration, data and packages"
                )
                error.reported = True
                raise error


@contextmanager
def open_ranks(config: RunConfig) -> Iterator[Ranks]:
    """Join the processes that a launcher started, for the duration of the block.

    Raises:
        UserError: several processes were launched without a `deepspeed` section, or the ranks cannot connect.
        OtherRankError: a rank was lost while others waited for it.

    """
    size = launcher_number("WORLD_SIZE", "1")
    if config.deepspeed is None:
        if size > 1:
            raise UserError(
                f"a launcher started {size} processes but the configuration has no section deepspeed, and plain torch "
                "trains in a single process; add deepspeed.stage=1, or start a single process"
            )
        yield SingleProcess()
        return
    timeout = timedelta(seconds=config.deepspeed.timeout)
    # The engine's own messages go over NCCL between GPUs, and over gloo between CPUs.
    backend = "nccl" if config.training.device != "cpu" and torch.cuda.is_available() else "gloo"
    _join(size, timeout, backend)
    try:
        with _lost_ranks(config.deepspeed.timeout):
            yield ProcessGroup(None if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout))
    finally:
        dist.destroy_process_group()  # a group that still exists when Python ends may abort the process


@contextmanager
def new_group_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of process groups that a library creates in the block, which is otherwise torch's 30 minutes."""
    real = dist.new_group
    dist.new_group = partial(real, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.new_group = real


def _choose_gpu() -> None:
    """Use the GPU with this process's number on its node."""
    place, gpus = launcher_number("LOCAL_RANK", "0"), torch.cuda.device_count()
    if place >= gpus:
        raise UserError(
            f"process {place + 1} of this node has no GPU, since the node has {gpus}; start at most one process per "
            "GPU (--nproc_per_node, --num_gpus), and check CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(place)


def _join(size: int, timeout: timedelta, backend: str) -> None:
    if backend == "nccl":
        _choose_gpu()
    if "RANK" not in os.environ:  # without a launcher
        if size > 1:
            raise UserError(f"WORLD_SIZE is {size} but RANK is not set; start the run with torchrun or deepspeed")
        if (tasks := launcher_number("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise UserError(
                f"srun started {tasks} processes without RANK, so each would train on its own; let it start torchrun "
                "once per node, as tools/slurm_pretrain.sbatch does"
            )
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    required = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in required if not os.environ.get(name)]:
        raise UserError(f"RANK is set but {missing[0]} is not; start the run with torchrun or deepspeed")
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        reason = " ".join(str(error).split())[:200]
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            raise UserError(
                f"port {port} is in use by another program; choose another one with --master_port or MASTER_PORT"
            ) from None
        raise UserError(
            f"the {size} ranks cannot connect at {address}:{port} ({reason}); check that all were started, that the "
            "address is reachable and that no other run uses the port"
        ) from None


@contextmanager
def _lost_ranks(timeout: float) -> Iterator[None]:
    """Report a broken connection as a lost rank."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(part in text for part in ("gloo", "NCCL", "Gloo")):
            raise
        reason = " ".join(text.split())[:200]
        raise OtherRankError(
            f"rank {dist.get_rank()} lost another rank, which died or did not answer within {timeout:g} seconds "
            f"({reason}); the cause is above or in that rank's own log; run the same command to resume from the last "
            "checkpoint",
            1,
        ) from None
