"""How long work reports its progress: functions that the caller passes in and that print, log or do nothing."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (items done, items in total)."""

NamedProgress = Callable[[str, int, int], None]
"""Called with (what is being done, items done, items in total), where several kinds of work follow each other."""


def after(progress: Progress | None, before: int) -> Progress | None:
    """Return the progress of work that follows `before` other items."""
    return progress and (lambda done, total: progress(before + done, before + total))
