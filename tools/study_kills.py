"""Kill runs at random moments and check that each resumes to the weights and losses of an undisturbed run.

python -m tools.study_kills --out docs/results/kills.json --kills 100

Runs of plain torch, with and without loader processes, and of DeepSpeed (ZeRO 2), in one process and in two over gloo,
and exports get SIGKILL or SIGTERM, on one rank or on all. Half of the moments are drawn uniformly over the time that an
undisturbed run takes; the others are when the temporary folder of a checkpoint or an export has just appeared. After
each kill the newest checkpoint must be whole, and the same run resumes until the next kill. At its end it must have the
weights of the undisturbed run bit for bit, and each logged loss once. An export must be whole or absent, and whole
after the same command.

Processes are forks of this one, which has imported everything, so that a kill costs seconds; they do what `dimvl
pretrain` and `dimvl export` do. The data are synthetic, so nothing is learnt.
"""

import argparse
import json
import logging
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.data import TEXTS, image_id, write_regions
from dimvl.checkpoints import LOG, WEIGHTS, check_checkpoint, latest_checkpoint, read_log
from dimvl.errors import Interrupted, OtherRankError
from dimvl.export import check_export, export
from dimvl.files import sha256, write_json
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.training.report import TIMES
from dimvl.training.run import run_training

KINDS = {  # ranks, ZeRO stage and loader processes
    "torch": (1, None, 0),
    "torch, 2 loaders": (1, None, 2),
    "ZeRO 2, 1 rank": (1, 2, 0),
    "ZeRO 2, 2 ranks": (2, 2, 0),
}
PATIENCE = 200.0  # seconds until a process counts as hanging: more than five timeouts, see docs/distributed.md
WRITING = 0.01  # seconds for which a temporary folder exists, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write after each run")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="determines kinds, moments and signals")
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), drawn)
        while study.kills.total() < options.kills:
            kind = drawn.choices([*KINDS, "export"], weights=[2, 2, 2, 2, 6])[0]
            if kind == "export":
                study.kill_an_export()
            else:
                study.kill_a_run(kind)
            write_json(options.out, study.report())
            print(f"{study.kills.total()} kills; {study.finished.total()} runs and exports equal undisturbed ones")


class Study:
    """Kills by kind, signal and moment, runs and exports that ended equal to undisturbed ones, and the longest wait."""

    def __init__(self, folder: Path, drawn: random.Random) -> None:
        self.folder, self.drawn, self.number = folder, drawn, 0
        self.kills, self.finished, self.longest = Counter[str](), Counter[str](), 0.0
        make_data(folder)
        self.undisturbed = {}  # seconds and outcome
        for kind in KINDS:
            seconds = self._time(self._start(kind, folder / kind))
            self.undisturbed[kind] = seconds, outcome(folder / kind)
        for out in ("first", "export"):  # the first one warms up
            self.export_takes = self._time(self._export(folder / out))

    def _time(self, processes: Sequence[int]) -> float:
        start = time.monotonic()
        assert not any(wait(processes)), "an undisturbed process failed"
        return time.monotonic() - start

    def _start(self, kind: str, run: Path) -> list[int]:
        ranks, stage, loaders = KINDS[kind]
        return fork(ranks, lambda: run_training(make_config(self.folder, run, stage, loaders)))

    def _export(self, out: Path) -> list[int]:
        return fork(1, lambda: export(self.folder / "torch", out, "none"))

    def kill_a_run(self, kind: str) -> None:
        """Kill and resume a run until it ends in spite of a kill, then compare."""
        self.number += 1
        run, (seconds, wanted) = self.folder / f"run-{self.number}", self.undisturbed[kind]
        while True:
            left = temporary_in(run / "checkpoints")  # by the previous kill
            processes = self._start(kind, run)
            self._await_moment(run / "checkpoints", len(left) + self.drawn.randint(1, 3), seconds, processes)
            number = self.drawn.choice([signal.SIGKILL, signal.SIGTERM])
            hit = processes if self.drawn.random() < 0.3 else [self.drawn.choice(processes)]
            moment, start = "in preparation", time.monotonic()
            if temporary_in(run / "checkpoints") - left:
                moment = "while saving"
            elif (run / "log.jsonl").exists():
                moment = "in training"
            for process in hit:
                os.kill(process, number)  # works on one that has ended too: it is still a zombie
            if not any(wait(processes)):
                break
            self.longest = max(self.longest, time.monotonic() - start)
            self.kills[f"{kind}: {number.name} {moment}"] += 1
            if (newest := latest_checkpoint(run)) is not None:
                check_checkpoint(newest)
        assert outcome(run) == wanted, f"{run} differs from the undisturbed run of {kind}"
        self.finished[kind] += 1
        shutil.rmtree(run)

    def _await_moment(self, folder: Path, wanted: int, seconds: float, processes: Sequence[int]) -> None:
        """Sleep until a random moment within `seconds`, or until `wanted` temporary folders have appeared."""
        if self.drawn.random() < 0.5:
            time.sleep(self.drawn.uniform(0, seconds))
            return
        found = temporary_in(folder)
        while len(found) < wanted and not any(map(has_ended, processes)):
            found |= temporary_in(folder)
            time.sleep(0.0002)
        time.sleep(self.drawn.uniform(0, WRITING))

    def kill_an_export(self) -> None:
        """Kill one export, over an older one or none, then export again."""
        self.number += 1
        whole, out = self.folder / "export", self.folder / f"exports-{self.number}" / "out"
        out.parent.mkdir()
        if self.drawn.random() < 0.5:
            shutil.copytree(whole, out)
        processes = self._export(out)
        self._await_moment(out.parent, 1, self.export_takes, processes)
        number = self.drawn.choice([signal.SIGKILL, signal.SIGTERM])
        moment = "while writing" if temporary_in(out.parent) else "before or after it"
        os.kill(processes[0], number)
        if any(wait(processes)):
            self.kills[f"export: {number.name} {moment}"] += 1
        if out.exists():
            check_export(out)
        self._time(self._export(out))
        check_export(out)
        assert sha256(out / WEIGHTS) == sha256(whole / WEIGHTS)
        self.finished["export"] += 1
        shutil.rmtree(out.parent)

    def report(self) -> dict[str, Any]:
        """Return the result so far."""
        return {
            "command": " ".join(["python -m tools.study_kills", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "hardware": f"{os.cpu_count()}-core {platform.machine()}, load average {os.getloadavg()[0]:.1f}",
            "kills": dict(sorted(self.kills.items())),
            "finished as undisturbed ones": dict(sorted(self.finished.items())),
            "different, broken or hanging": 0,  # the first one would have ended the study
            "seconds of an undisturbed run": {kind: round(found[0], 1) for kind, found in self.undisturbed.items()},
            "most seconds from a kill to the end of all ranks": round(self.longest, 1),
        }


def temporary_in(folder: Path) -> set[Path]:
    """Folders that are being written, or were when their process was killed."""
    return set(folder.glob(".*.part"))


def outcome(run: Path) -> tuple[str, list[str]]:
    """Checksum of the weights, and what was logged at each step except times."""
    newest = latest_checkpoint(run)
    assert newest is not None
    lines = read_log(run / LOG)
    logged = [json.dumps({name: value for name, value in line.items() if name not in TIMES}) for line in lines]
    return sha256(newest / WEIGHTS), logged


def fork(ranks: int, action: Callable[[], Any]) -> list[int]:
    """Start forks that do an action as the ranks of one run; return their process ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(ranks):
        if process := os.fork():
            processes.append(process)
            continue
        if ranks > 1:
            meeting = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in meeting.items()} | {"MASTER_ADDR": "127.0.0.1"}
        code = 1
        try:
            action()
            code = 0
        except (Interrupted, OtherRankError, KeyboardInterrupt):
            code = 3
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return processes


def has_ended(process: int) -> bool:
    """Whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(processes: Sequence[int]) -> list[int]:
    """Return exit codes; that of a killed process is minus the signal.

    Raises:
        RuntimeError: a process hangs or failed on its own.

    """
    codes: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while len(codes) < len(processes):
        for process in set(processes) - set(codes):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            raise RuntimeError(f"{set(processes) - set(codes)} of {processes} hang")
        time.sleep(0.01)
    if 1 in codes.values():
        raise RuntimeError("a process failed on its own; its message is above")
    return list(codes.values())


def make_data(folder: Path) -> None:
    """Write a store of 40 images, and two captions for each."""
    write_regions(folder / "regions", 40, 5, 16)
    captions = [{"id": n, "image_id": image_id(n // 2), "caption": TEXTS[n % len(TEXTS)]} for n in range(80)]
    write_json(folder / "captions.json", {"annotations": captions})


def make_config(folder: Path, run: Path, stage: int | None, loaders: int) -> PretrainConfig:
    """Twelve steps with dropout and a checkpoint after every second one."""
    content: dict[str, Any] = {"output": run, "regions": folder / "regions", "captions": folder / "captions.json"}
    content |= {"inputs": {"max_regions": 5, "concept_tokens": 6, "text_tokens": 10, "vocabulary": 60}}
    content |= {"model": {"layers": 1, "width": 64, "heads": 2, "inner_width": 128}}
    budgets = {"rows_per_step": 300, "rows_per_micro_batch": 100, "workers": loaders}
    content |= {"training": {"steps": 12, "save_every": 2, "keep": 2, "log_every": 1, "threads": 1, **budgets}}
    content |= {"deepspeed": None if stage is None else {"stage": stage, "timeout": 30}}
    return PretrainConfig(**content)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    import deepspeed  # noqa: F401 - imported here so that the forks have it

    main()
