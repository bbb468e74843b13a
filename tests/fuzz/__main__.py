"""Fuzzing: random changes of every kind of file, each read in a process of its own.

    python -m tests.fuzz --trials 100000 --jobs 2 --out failures.jsonl
    python -m tests.fuzz --trial 4711        # one again, with its traceback; its folder is kept

A trial copies a sound export, run, region store, configuration, annotations or images, changes one file (a flipped
bit, a cut, an edited JSON value, a link in its place; see `mutations.py`), sometimes makes the checksums fit again, and
reads the folder as dimvl does. Seed and number decide everything. A trial fails if the result is another one without an
error or a warning although the file has a checksum (SILENT), if it ends in a traceback, lasts 30 seconds (HANG), takes
2 GiB (MEMORY), ends the process (ABORT), or explains itself in more than 3,000 characters (LONG).
"""

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.subjects import Subject, make_subjects
from tests.fuzz.trials import BAD, SUBJECTS, Trial, as_line, run_trial, run_trials, warm

GOOD = ("error", "same", "warned", "edited")


def main() -> int:
    """Run the command; the exit code is 1 if a trial fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every kind of file.")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="run only this one")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", choices=SUBJECTS, help="change only this kind of folder; numbers then mean others")
    parser.add_argument("--out", type=Path, help="file for the trials that fail, one line of JSON each")
    options = parser.parse_args()
    if options.trial is not None:
        with prepared(options.only) as (subjects, _):
            place = Path(tempfile.mkdtemp(prefix="dimvl-fuzz-")) / "changed"
            found: list[Trial] = []
            run_trial(subjects, options.seed, options.trial, place, found.append, shown=True)
            print(json.dumps(found[-1].__dict__, indent=2), f"\n{place}")
            return int(found[-1].outcome in BAD)
    start = time.monotonic()
    found = fuzz(options.trials, options.seed, options.jobs, options.only)
    failed = [trial for trial in found if trial.outcome in BAD]
    if options.out is not None:
        options.out.write_text("".join(map(as_line, failed)))
    print(table(found))
    for (outcome, detail), count in Counter((trial.outcome, _kind(trial)) for trial in failed).most_common(40):
        first = next(trial for trial in failed if (trial.outcome, _kind(trial)) == (outcome, detail))
        print(f"{count:6} {outcome} {detail} (trial {first.number}: {first.file}, {first.change})")
    print(f"{len(found):,} trials, {len(failed):,} failed, {time.monotonic() - start:.0f} s, seed {options.seed}")
    return int(bool(failed))


class prepared:  # noqa: N801 - used like a function
    """Write the sound folders, run all stages once, and remove the folders at the end."""

    def __init__(self, only: str | None = None) -> None:
        self._only = only

    def __enter__(self) -> tuple[list[Subject], Path]:
        logging.getLogger("dimvl").propagate = False
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(prefix="dimvl-fuzz-", dir=memory if memory.is_dir() else None)
        folder = Path(self._folder.name)
        subjects = [subject for subject in make_subjects(folder) if self._only in (None, subject.name)]
        warm(subjects)
        gc.collect()
        gc.freeze()  # so that children do not copy what they only read
        return subjects, folder

    def __exit__(self, *_: object) -> None:
        logging.getLogger("dimvl").propagate = True
        self._folder.cleanup()


def fuzz(trials: int, seed: int = 0, jobs: int = 1, only: str | None = None) -> list[Trial]:
    """Run trials 0 to `trials` - 1 in a number of processes; `only` is the name of a subject."""
    with prepared(only) as (subjects, folder):
        results = [folder / f"results-{job}.jsonl" for job in range(jobs)]
        children = []
        for job, result in enumerate(results):
            child = os.fork()
            if not child:
                try:
                    with result.open("w") as file:
                        for trial in run_trials(subjects, seed, range(job, trials, jobs), folder / f"trial-{job}"):
                            file.write(as_line(trial))
                            if job == 0 and (trial.number // jobs + 1) % 1000 == 0:
                                print(f"{trial.number + jobs:,} trials", file=sys.stderr, flush=True)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        lines = [line for result in results for line in result.read_text().splitlines()]
    found = sorted((Trial(**json.loads(line)) for line in lines), key=lambda trial: trial.number)
    assert [trial.number for trial in found] == list(range(trials)), "a process that runs trials ended early"
    return found


def table(found: list[Trial]) -> str:
    """Return counts of outcomes by kind of file and by kind of change, as Markdown."""
    outcomes = [*GOOD, *BAD]
    groups = [lambda trial: f"{trial.subject}: {_short(trial.file)}", lambda trial: _changed(trial)]
    lines = []
    for title, group in zip(("file", "change"), groups, strict=True):
        counts = Counter((group(trial), trial.outcome) for trial in found)
        lines += ["", f"| {title} | trials | {' | '.join(outcomes)} |", f"|---|{'---|' * (len(outcomes) + 1)}"]
        for name in sorted({name for name, _ in counts}):
            row = [counts[name, outcome] for outcome in outcomes]
            lines.append(f"| {name} | {sum(row):,} | {' | '.join(f'{count:,}' for count in row)} |")
    return "\n".join([*lines, ""])


def _short(file: str) -> str:
    parts = file.split("/")
    return file if len(parts) < 3 else f"{parts[0]}/.../{parts[-1].partition('-')[0]}"


def _changed(trial: Trial) -> str:
    return trial.change + (", checksums made to fit" if trial.sealed_again else "")


def _kind(trial: Trial) -> str:
    return (
        trial.detail.partition(": ")[0] if trial.outcome in ("TRACEBACK", "MEMORY") else f"{trial.subject} {trial.file}"
    )


if __name__ == "__main__":
    sys.exit(main())
