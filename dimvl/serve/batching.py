"""The thread that takes waiting requests in batches, as large as what waits and at most a budget."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from dimvl.serve.jobs import Job

logger = logging.getLogger(__name__)
SMOOTHING = 0.1
"""Share of the newest batch in the mean time of a request."""


class Batcher:
    """Computes jobs in batches in a thread of its own, in the order in which they come.

    Args:
        compute: gives each job of a batch its result or an error.
        size: the most images or texts of a batch; a job that is larger is a batch of its own.
        delay: the most seconds that the first job of a batch waits for others, if there are fewer than there were while
            the batch before was computed.

    Attributes:
        seconds: recent mean time per job.

    """

    def __init__(self, compute: Callable[[Sequence[Job]], None], size: int, delay: float) -> None:
        self._compute, self._size, self._delay = compute, size, delay
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._next: Job | None = None  # taken from the queue, but too large for the batch before
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._expected = size  # jobs at once; nothing is known of them yet
        self.seconds = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Compute what waits, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def put(self, job: Job) -> None:
        """Let a job wait; its future can be cancelled until it is taken."""
        self._waiting.put(job)

    @property
    def waiting(self) -> int:
        """Number of waiting jobs."""
        return self._waiting.qsize() + (self._next is not None)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are computed."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (first := self._next or self._waiting.get()) is not None:
            jobs = self._batch(first)
            started = time.monotonic()
            taken = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            try:
                self._compute(taken)
            except Exception as error:
                logger.exception("a batch of %d requests failed", len(taken))
                for job in taken:
                    if not job.future.done():
                        job.future.set_exception(error)
            self._expected = len(taken) + self.waiting  # who has an answer may ask again
            if taken:
                own = (time.monotonic() - started) / len(taken)
                self.seconds += (own - self.seconds) * (SMOOTHING if self.seconds else 1)

    def _batch(self, first: Job) -> list[Job]:
        """Return the first job and those that fit into a batch with it and come soon enough."""
        jobs, self._next, until, left = [first], None, time.monotonic() + self._delay, self._size - first.request.size
        while left > 0:
            try:
                wait = until - time.monotonic() if len(jobs) < self._expected else 0.0
                job = self._waiting.get(timeout=max(wait, 0.0))
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)  # the next turn ends the thread
                break
            if job.future.cancelled():
                continue
            if job.request.size > left:
                self._next = job
                break
            jobs.append(job)
            left -= job.request.size
        return jobs
