"""What Prometheus reads at `/metrics`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of requests and batches, and the memory of the process.

    Args:
        accepted: returns how many requests are read, wait or are computed.
        waiting: returns how many of these wait.

    """

    def __init__(self, accepted: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("dimvl_requests", "Requests by kind and status.", ["kind", "status"], registry=own)
        self._seconds = Histogram(
            "dimvl_request_seconds", "Time until the answer.", ["kind"], buckets=SECONDS, registry=own
        )
        self._batches = Histogram("dimvl_batch_requests", "Requests of a batch.", buckets=REQUESTS, registry=own)
        self._computed = Histogram("dimvl_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=own)
        Gauge("dimvl_accepted", "Requests that are read, wait or are computed.", registry=own).set_function(accepted)
        Gauge("dimvl_waiting", "Requests that wait.", registry=own).set_function(waiting)

    def count(self, kind: str, status: int, seconds: float) -> None:
        """Count a request that got an answer."""
        self._requests.labels(kind, str(status)).inc()
        self._seconds.labels(kind).observe(seconds)

    @contextmanager
    def batch(self, requests: int) -> Iterator[None]:
        """Count a batch and its time."""
        started = time.perf_counter()
        yield
        self._batches.observe(requests)
        self._computed.observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """Return the format of Prometheus."""
        return generate_latest(self._registry)
