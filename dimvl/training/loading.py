"""Steps from the store to the device: built by worker processes, pinned, and copied while the GPU computes."""

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
    """Yield steps from number `first` on, built by worker processes if any, and count the time spent waiting.

    On CUDA the first micro-batch of each step is already on the GPU. Close the generator to end the worker processes
    early.

    Raises:
        UserError: a worker process died, or found a mistake in the data.
        OtherRankError: another rank could not build a step.

    """
    steps = _load(data, first, workers, device.type == "cuda", meter, ranks)
    return _copy_ahead(steps, device) if device.type == "cuda" else steps


class _StepsOrErrors(Dataset[Step | UserError]):
    """Steps by number, or the `UserError` that prevented one.

    Raised in a worker process, it would arrive with that process's traceback as its message.
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
        _StepsOrErrors(data),
        batch_size=None,
        sampler=range(first, len(data)),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker,
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
        # Torch does this when the iterator is collected, but a traceback may keep it alive, and Python would then wait.
        if workers:
            steps._shutdown_workers()  # type: ignore[attr-defined]


def _copy_ahead(steps: Generator[Step], device: torch.device) -> Generator[Step]:
    """Copy the first micro-batch of each step to the GPU while the GPU computes the previous step."""
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
    """Make the computing stream wait for the copy, and keep the copy's memory until that stream has used it."""
    computing = torch.cuda.current_stream()
    computing.wait_event(event)
    for batch in step.micro_batches[:1]:
        batch.record_stream(computing)
    return step


def _start_worker(worker: int) -> None:
    """Make a worker process ignore the signals that launchers send to the whole process group, and end with its parent.

    The run still needs batches until it has saved.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process within a second of its parent, which may have been killed.

    Torch's workers check for that only between two steps, and wait forever if steps fill the pipe to the parent.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def dead_workers() -> Iterator[None]:
    """Turn the death of a worker process, usually for lack of memory, into a `UserError`.

    Torch raises it wherever the main process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data-loader worker died ({' '.join(str(error).split())}); if memory ran out, lower "
            "training.workers; run the same command to resume from the last checkpoint"
        ) from None
