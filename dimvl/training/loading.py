"""Steps on their way from the store to the device: built by worker processes, pinned, copied while the GPU computes."""

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset

from dimvl.data.sampler import Step, TrainingSteps
from dimvl.errors import UserError
from dimvl.training.ranks import Ranks, fail_together
from dimvl.training.report import Meter


def prefetch(
    data: TrainingSteps, first: int, workers: int, device: torch.device, meter: Meter, ranks: Ranks
) -> Generator[Step]:
    """Steps from `first` on, built by worker processes if any; the time spent waiting is counted.

    On CUDA the first micro-batch of each is on the GPU already.

    Close the iterator where it is left early: the worker processes end then.

    Raises:
        UserError: a worker process died, or found a mistake in the data.
        OtherRankError: no step could be built on another rank.

    """
    steps = _load(data, first, workers, device.type == "cuda", meter, ranks)
    return _copy_ahead(steps, device) if device.type == "cuda" else steps


class _StepsOrMistakes(Dataset[Step | UserError]):
    """Steps by number, or the user's mistake that kept one from being built.

    One that is raised in a worker process would come with the traceback of that process as its message.
    """

    def __init__(self, data: TrainingSteps) -> None:
        self.data = data

    def __getitem__(self, number: int) -> Step | UserError:
        try:
            return self.data[number]
        except UserError as error:
            return error


def _load(data: TrainingSteps, first: int, workers: int, pin: bool, meter: Meter, ranks: Ranks) -> Generator[Step]:
    loader = DataLoader(
        _StepsOrMistakes(data),
        batch_size=None,
        sampler=range(first, len(data)),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_live_as_long_as_the_run,
    )
    steps = iter(loader)
    try:
        for _ in range(first, len(data)):
            with fail_together(ranks), dead_workers():
                start = time.perf_counter()
                step = next(steps)
                meter.wait += time.perf_counter() - start
                if isinstance(step, UserError):
                    raise step
            yield step
    finally:
        # Torch does it when nothing refers to the iterator, but a traceback may; then Python would wait for them.
        if workers:
            steps._shutdown_workers()  # type: ignore[attr-defined]


def _copy_ahead(steps: Generator[Step], device: torch.device) -> Generator[Step]:
    """Copy the first micro-batch of each step to the GPU while it computes the step before."""
    stream, copied = torch.cuda.Stream(device), None
    with closing(steps):
        for step in steps:
            before = copied
            with torch.cuda.stream(stream):
                batches = [batch.to(device) for batch in step.micro_batches[:1]] + step.micro_batches[1:]
                copied = replace(step, micro_batches=batches), stream.record_event()
            if before is not None:
                yield _wait_for(*before)
    if copied is not None:
        yield _wait_for(*copied)


def _wait_for(step: Step, event: torch.cuda.Event) -> Step:
    """Let the computing stream wait for a copy, and the memory of the copy for the computing stream."""
    computing = torch.cuda.current_stream()
    computing.wait_event(event)
    for batch in step.micro_batches[:1]:
        batch.record_stream(computing)
    return step


def _live_as_long_as_the_run(worker: int) -> None:
    """Let a worker process live on when its whole process group is asked to stop, as launchers do, and no longer.

    Batches are needed until the run has saved; the worker ends with the process that it works for.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process within a second of its parent, which may have been killed.

    Torch's own workers look for it between two steps only, and then wait for good where steps fill the pipe to it.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def dead_workers() -> Iterator[None]:
    """Tell the death of a process that builds batches as a user's concern: mostly it was killed for its memory.

    torch raises it wherever the loop is at that moment.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that builds batches died ({' '.join(str(error).split())}); if memory ran out, lower "
            "training.workers; run the same command to go on from the last checkpoint"
        ) from None
