"""What the processes of one run agree on: counts, failures, when to stop. A run of one process needs none of it.

A launcher (`torchrun`, `deepspeed`, SLURM with `RANK` and the like set) starts one process per device, each of which
is a *rank*. Ranks must call the same methods in the same order. Whoever fails between two calls says so at the end of
a `fail_together` block, so that all ranks stop with the reason instead of waiting for one that is gone; a rank that was
killed ends the others as soon as its connection breaks, or after `deepspeed.timeout` seconds.

These messages are small and go over gloo on the CPU; gradients and weights are the engine's own business.
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

T = TypeVar("T")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks(Protocol):
    """The processes of one run.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        waited: seconds that this process has spent in the methods below, mostly waiting for the others.

    """

    rank: int
    size: int
    waited: float

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum arrays of one shape over ranks; float64 and int64."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, small and plain."""
        ...


class SingleProcess:
    """One process."""

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
    """The processes of torch's process group.

    Args:
        group: over gloo; None for the default one.

    """

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
        """Return the value of each rank."""
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
    """Tell whether the flag is set on every rank."""
    return bool(ranks.sum(np.array([flag], dtype=np.int64))[0] == ranks.size)


def any_rank(ranks: Ranks, flag: bool) -> bool:
    """Tell whether the flag is set on some rank."""
    return bool(ranks.sum(np.array([flag], dtype=np.int64))[0])


@contextmanager
def fail_together(ranks: Ranks) -> Iterator[None]:
    """Make sure that all ranks do a block, or none goes on: no collective call may stand inside it.

    Raises:
        OtherRankError: another rank failed; the one that did raises its own error.

    """
    failure: tuple[str, int] | None = None
    try:
        yield
    except Exception as error:
        failure = _told(error)
        any_rank(ranks, True)
        ranks.gather(failure)
        if isinstance(error, UserError):
            error.told = True
        raise
    if any_rank(ranks, False):
        rank, told = next((rank, told) for rank, told in enumerate(ranks.gather(failure)) if told is not None)
        raise OtherRankError(f"rank {rank}: {told[0]}", told[1])


def on_rank_zero(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on rank 0 only and give the result, small and plain, to all.

    Raises:
        OtherRankError: it failed there.

    """
    result = None
    with fail_together(ranks):
        if ranks.rank == 0:
            result = action()
    value: Any = ranks.gather(result)[0]
    return value


def _told(error: Exception) -> tuple[str, int]:
    """Sentence and exit code for the other ranks."""
    if isinstance(error, UserError | NotFiniteError):
        return str(error), 2 if isinstance(error, UserError) else 1
    return f"{type(error).__name__}: {error}", 1


def check_same(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Compare what must be the same on every rank with that of rank 0.

    Args:
        ranks: all of which call this.
        facts: name -> plain value, nested by mappings; a name that is told as it is.

    Raises:
        UserError: on every rank, naming the first one that differs, and what differs.

    """
    first, *others = ranks.gather(dict(facts))
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                error = UserError(
                    f"rank {rank} has another {name} than rank 0 ({other.get(name)!r}, not {first.get(name)!r}); "
                    "start every rank with the same configuration, data and packages"
                )
                error.told = True
                raise error


@contextmanager
def open_ranks(config: RunConfig) -> Iterator[Ranks]:
    """Join the processes that a launcher started, for as long as the block lasts.

    Raises:
        UserError: launched as several processes without a `deepspeed` section, or the ranks cannot meet.
        OtherRankError: a rank was lost while others waited for it.

    """
    size = _whole_number("WORLD_SIZE", "1")
    if config.deepspeed is None:
        if size > 1:
            raise UserError(
                f"a launcher started {size} processes but the configuration has no section deepspeed, and plain torch "
                "trains in one; add deepspeed.stage=1, or start a single process"
            )
        yield SingleProcess()
        return
    timeout = timedelta(seconds=config.deepspeed.timeout)
    _join(size, timeout, choose_backend(config.training.device))
    try:
        with _lost_ranks(config.deepspeed.timeout):
            yield ProcessGroup(
                dist.new_group(backend="gloo", timeout=timeout) if dist.get_backend() != "gloo" else None
            )
    finally:
        dist.destroy_process_group()  # a group that is still there when Python ends may abort the process


@contextmanager
def new_groups_wait(seconds: float) -> Iterator[None]:
    """Let the process groups that a library makes meanwhile wait so long: torch's own 30 minutes are its default."""
    real = dist.new_group
    dist.new_group = partial(real, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.new_group = real


def choose_backend(device: str) -> str:
    """Name the backend of the engine's own messages: NCCL between GPUs, gloo between CPUs."""
    return "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"


def _whole_number(name: str, default: str) -> int:
    """Read what a launcher sets.

    Raises:
        UserError: it is no number from 0 on.

    """
    value = os.environ.get(name) or default
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r} and must be a whole number; start the run by torchrun or deepspeed")
    return int(value)


def _choose_gpu() -> None:
    """Take the GPU of this process's place on its node.

    Raises:
        UserError: there are more processes than GPUs.

    """
    place, there = _whole_number("LOCAL_RANK", "0"), torch.cuda.device_count()
    if place >= there:
        raise UserError(
            f"process {place + 1} of this node has no GPU, of which there are {there}; start at most one process for "
            "each (--nproc_per_node, --num_gpus), and look at CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(place)


def _join(size: int, timeout: timedelta, backend: str) -> None:
    if backend == "nccl":
        _choose_gpu()
    if "RANK" not in os.environ:  # without a launcher
        if size > 1:
            raise UserError(f"WORLD_SIZE is {size} but RANK is not set; start the run by torchrun or deepspeed")
        if (tasks := _whole_number("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise UserError(
                f"srun started {tasks} processes without RANK, so each would train by itself; let it start torchrun "
                "once on each node, as tools/slurm_pretrain.sbatch does"
            )
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    if missing := [name for name in LAUNCHED if not os.environ.get(name)]:
        raise UserError(f"RANK is set but {missing[0]} is not; start the run by torchrun or deepspeed")
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:200]
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            raise UserError(
                f"port {os.environ['MASTER_PORT']} is in use by another program; give the launcher another one "
                "(--master_port, or MASTER_PORT)"
            ) from None
        raise UserError(
            f"the {size} ranks do not meet at {where} ({reason}); check that all were started, that the address is "
            "reachable and that no other run uses the port"
        ) from None


@contextmanager
def _lost_ranks(timeout: float) -> Iterator[None]:
    """Tell a broken connection as what it is."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(part in text for part in ("gloo", "NCCL", "Gloo")):
            raise
        reason = " ".join(text.split())[:200]
        rank = dist.get_rank()
        raise OtherRankError(
            f"rank {rank} lost another rank, which died or did not answer within {timeout:g} seconds ({reason}); what "
            "ended it stands above or in its own log; run the same command to go on from the last checkpoint",
            1,
        ) from None
