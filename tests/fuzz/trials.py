"""A trial: a copy of a folder, one change in one of its files, and the stage that reads it, in another process."""

import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dimvl.errors import NotFiniteError, UserError
from tests.fuzz.mutations import BYTES, EDITS, replace_file, reseal
from tests.fuzz.subjects import Stage, Subject

SECONDS = 30
TOGETHER = 50
MEMORY = 2 * 2**30
LONGEST = 3000
BAD = ("SILENT", "TRACEBACK", "HANG", "MEMORY", "ABORT", "LONG")
"""Outcomes that must not occur; the others: same, warned, error, and edited, where the edit has a meaning."""
SUBJECTS = {"export": 0.3, "run": 0.3, "store": 0.15, "configuration": 0.1, "annotations": 0.1, "images": 0.05}
LINES = ("lines", "cut", "longer", "another file")
"""Changes of a log that may drop or repeat whole lines, which nothing in the file shows."""


@dataclass(frozen=True)
class Trial:
    """A trial and what came of it; `detail` is the message or the last call of the traceback."""

    number: int
    subject: str
    file: str
    change: str
    sealed_again: bool
    outcome: str
    detail: str


def run_trials(subjects: list[Subject], seed: int, numbers: Sequence[int], place: Path) -> Iterator[Trial]:
    """Do trials in processes of their own, `TOGETHER` in one; one that fails, or ends the process, again alone.

    Args:
        subjects: what there is to change.
        seed: with a trial's number, decides everything.
        numbers: the trials.
        place: a folder that does not exist.

    """
    waiting = list(numbers)
    while waiting:
        found = _in_a_process(subjects, seed, waiting[:TOGETHER], place)
        for trial in found:
            yield trial if trial.outcome not in BAD else _in_a_process(subjects, seed, [trial.number], place)[0]
        waiting = waiting[len(found) :]


def _in_a_process(subjects: list[Subject], seed: int, numbers: Sequence[int], place: Path) -> list[Trial]:
    """Return the trials that a child process did; the last one may have ended it."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        _bound_memory()
        with os.fdopen(sending, "w") as pipe:

            def send(trial: Trial) -> None:
                pipe.write(as_line(trial))
                pipe.flush()

            for number in numbers:
                run_trial(subjects, seed, number, place, send)
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        found = {trial.number: trial for trial in (Trial(**json.loads(line)) for line in pipe)}
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(place, ignore_errors=True)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    ended = ("HANG" if number == signal.SIGALRM else "ABORT", f"signal {number}" if number else f"status {status}")
    return [t if t.outcome else replace(t, outcome=ended[0], detail=ended[1]) for t in found.values()]


def run_trial(
    subjects: list[Subject], seed: int, number: int, place: Path, send: Callable[[Trial], None], shown: bool = False
) -> None:
    """Do a trial in this process.

    Args:
        subjects: as in `run_trials`.
        seed: likewise.
        number: of the trial.
        place: a folder that does not exist.
        send: called before the file is read, and with the outcome.
        shown: print the traceback, and keep the folder.

    """
    drawn = random.Random(f"{seed}-{number}")
    subject = drawn.choices(subjects, [SUBJECTS[subject.name] for subject in subjects])[0]
    name = drawn.choice(subject.files)
    stage = drawn.choice(subject.stages_of(name))
    wanted = _wanted(subject, stage)
    shutil.copytree(subject.folder, place)
    change, again = _change(subject, place, name, drawn)
    trial = Trial(number, subject.name, name, change, again, "", "")
    send(trial)
    signal.alarm(SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts again
    outcome, detail = _outcome(stage, place, wanted, shown)
    if (peak := _peak()) > MEMORY:
        outcome, detail = "MEMORY", f"{peak / 2**30:.1f} GiB"
    signal.alarm(0)
    if not shown:
        shutil.rmtree(place)
    if outcome == "other":
        lines = name == "log.jsonl" and change in LINES
        outcome = "SILENT" if subject.is_sealed(name) and not again and not lines else "edited"
    send(replace(trial, outcome=outcome, detail=detail))


def _change(subject: Subject, place: Path, name: str, drawn: random.Random) -> tuple[str, bool]:
    """Change a file of a copy; return how, and whether the checksums were made to fit."""
    path = place / name
    kinds = [*BYTES] * 2 + ["one bit"] * 6 + ["replaced"] * 2 + ["edit"] * (8 if path.suffix in EDITS else 0)
    kind = drawn.choice(kinds)
    if kind == "replaced":
        others = [place / other for other in subject.files if other != name and Path(other).suffix == path.suffix]
        return replace_file(path, others, drawn), False
    before = _checksums(subject)
    change = EDITS[path.suffix] if kind == "edit" else BYTES[kind]
    path.write_bytes(change(path.read_bytes(), drawn))
    again = bool(subject.sealed) and kind == "edit" and drawn.random() < 0.7 and path.suffix != ".jsonl"
    if again:
        reseal(place, before, name)
    what = {".json": "JSON", ".jsonl": "lines", ".yaml": "YAML", ".npy": "array header"}
    return (what.get(path.suffix, "tensor header") if kind == "edit" else kind), again


_known: dict[str, Any] = {}


def _checksums(subject: Subject) -> dict[str, str]:
    if subject.name not in _known:
        files = [path for path in subject.folder.rglob("*") if path.is_file()]
        digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
        names = (path.relative_to(subject.folder).as_posix() for path in files)
        _known[subject.name] = dict(zip(names, digests, strict=True))
    return dict(_known[subject.name])


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()


def _wanted(subject: Subject, stage: Stage) -> str:
    """Return the digest of what a stage gives for the sound folder; this also imports what the stage needs."""
    if stage not in _known:
        _known[stage] = _digest(stage(subject.folder))  # type: ignore[index]
    return str(_known[stage])  # type: ignore[index]


def warm(subjects: list[Subject]) -> None:
    """Run every stage once, so that trials find everything imported."""
    for subject in subjects:
        _checksums(subject)
        for name in subject.files:
            for stage in subject.stages_of(name):
                _wanted(subject, stage)


def _bound_memory() -> None:
    """Let this process map no more than `MEMORY` more, and wait for no alarm."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _peak() -> int:
    """Return the peak of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _outcome(stage: Stage, place: Path, wanted: str, shown: bool) -> tuple[str, str]:
    warnings = _Warnings()
    logging.getLogger("dimvl").handlers[:] = [warnings]
    try:
        found = stage(place)
    except (UserError, NotFiniteError) as error:
        return ("error" if len(str(error)) <= LONGEST else "LONG"), str(error)[:300]
    except MemoryError as error:
        return "MEMORY", _last_call(error)
    except BaseException as error:
        if shown:
            traceback.print_exc()
        return "TRACEBACK", _last_call(error)
    if _digest(found) == wanted:
        return "same", ""
    return ("warned", warnings.messages[0][:300]) if warnings.messages else ("other", "")


def _last_call(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/dimvl/" in frame.filename] or frames
    frame = own[-1]
    where = f"dimvl/{frame.filename.rpartition('/dimvl/')[2]}:{frame.lineno}"
    return f"{type(error).__name__} in {where} {frame.name}: {' '.join(str(error)[:150].split())}"


def as_line(trial: Trial) -> str:
    """Return a trial as a line of JSON."""
    return json.dumps(asdict(trial)) + "\n"
