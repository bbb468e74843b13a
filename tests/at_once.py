"""What several processes get that do the same at the same moment."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def at_once(do: Callable[[], Any], processes: int = 4) -> list[Any]:
    """Call `do` in several forks of this process; return each result, or the text of its error."""

    def call() -> None:
        together.wait(timeout=60)
        try:
            results.put(do())
        except Exception as error:
            results.put(repr(error))

    context = multiprocessing.get_context("fork")
    results, together = context.Queue(), context.Barrier(processes)
    forks = [context.Process(target=call) for _ in range(processes)]
    for fork in forks:
        fork.start()
    found = [results.get(timeout=60) for _ in forks]
    for fork in forks:
        fork.join()
    return found
