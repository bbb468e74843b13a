"""Kill runs at random moments and see that each goes on to the weights and losses of one that was left alone.

    python tools/study_kills.py --out docs/results/kills.json --kills 100

Runs of plain torch, with loader processes and without, of DeepSpeed (ZeRO 2) in one process and in two over gloo, and
exports get SIGKILL or SIGTERM, on one rank or on all. Half of the moments are drawn over as long as an undisturbed one
takes; at the others the temporary folder of a checkpoint or an export has just appeared. After each kill the newest
checkpoint must be whole; the same run then goes on until the next kill. When it comes to its end it must have the
weights of the undisturbed run bit for bit and each logged loss once. An export must be whole or not there, and whole
after the same command.

Processes are forks of this one, which has everything imported, so that a kill costs seconds; what they do is what
`dimvl pretrain` and `dimvl export` do. Data are random: nothing is learnt here.
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

import numpy as np

from dimvl.config import PretrainConfig
from dimvl.errors import Interrupted, OtherRankError
from dimvl.export import check_export, export
from dimvl.files import sha256, write_json
from dimvl.pretrained import WEIGHTS, check_checkpoint, latest_checkpoint
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training.report import TIMES
from dimvl.training.run import run_training

# ranks, stage and loader processes
KINDS = {
    "torch": (1, None, 0),
    "torch, 2 loaders": (1, None, 2),
    "ZeRO 2, 1 rank": (1, 2, 0),
    "ZeRO 2, 2 ranks": (2, 2, 0),
}
PATIENCE = 200.0  # seconds after which a process counts as hanging: above five timeouts, see docs/distributed.md
WRITING = 0.01  # seconds that a temporary folder is there, about


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="JSON file to write after each run")
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0, help="of kinds, moments and signals")
    chosen = options.parse_args()
    drawn = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), drawn)
        while study.kills.total() < chosen.kills:
            kind = drawn.choices([*KINDS, "export"], weights=[2, 2, 2, 2, 6])[0]
            if kind == "export":
                study.kill_an_export()
            else:
                study.kill_a_run(kind)
            write_json(chosen.out, study.report())
            print(f"{study.kills.total()} kills, {study.finished.total()} runs and exports equal undisturbed ones")


class Study:
    """Kills so far, and what the results are compared with.

    Attributes:
        kills: by kind, signal and moment.
        finished: runs and exports that came to their end, equal to undisturbed ones, by kind.
        longest: most seconds from a kill until all other ranks of the run were gone.

    """

    def __init__(self, folder: Path, drawn: random.Random) -> None:
        self.folder, self.drawn, self.number = folder, drawn, 0
        self.kills, self.finished, self.longest = Counter[str](), Counter[str](), 0.0
        make_data(folder)
        self.undisturbed = {kind: self._undisturbed(kind) for kind in KINDS}
        for out in ("first", "export"):  # the first one warms up
            self.export_takes = self._time(fork(1, lambda: export(folder / "torch", folder / out, "none")))  # noqa: B023

    def _undisturbed(self, kind: str) -> tuple[float, tuple[str, list[str]]]:
        """Seconds and outcome of an undisturbed run."""
        seconds = self._time(self._start(kind, self.folder / kind))
        return seconds, outcome(self.folder / kind)

    def _time(self, processes: Sequence[int]) -> float:
        start = time.monotonic()
        assert not any(wait(processes)), "what nobody kills comes to its end"
        return time.monotonic() - start

    def _start(self, kind: str, run: Path) -> list[int]:
        ranks, stage, loaders = KINDS[kind]
        config = make_config(self.folder, run, stage, loaders)
        return fork(ranks, lambda: run_training(config))

    def kill_a_run(self, kind: str) -> None:
        """Kill a run until it comes to its end in spite of it, then compare."""
        self.number += 1
        run, (seconds, wanted) = self.folder / f"run-{self.number}", self.undisturbed[kind]
        while True:
            left = temporary_in(run / "checkpoints")  # by the kill before
            processes = self._start(kind, run)
            self._await_moment(run / "checkpoints", len(left) + self.drawn.randint(1, 3), seconds, processes)
            number = self.drawn.choice([signal.SIGKILL, signal.SIGTERM])
            hit = processes if self.drawn.random() < 0.3 else [self.drawn.choice(processes)]
            saving = temporary_in(run / "checkpoints") - left
            moment, start = "while saving" if saving else moment_of(run), time.monotonic()
            for process in hit:
                os.kill(process, number)  # one that has ended is a zombie still
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
        """Sleep until any moment of so many seconds, or until so many temporary folders have appeared in `folder`."""
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
        processes = fork(1, lambda: export(self.folder / "torch", out, "none"))
        self._await_moment(out.parent, 1, self.export_takes, processes)
        number = self.drawn.choice([signal.SIGKILL, signal.SIGTERM])
        moment = "while writing" if temporary_in(out.parent) else "before or after it"
        os.kill(processes[0], number)
        if any(wait(processes)):
            self.kills[f"export: {number.name} {moment}"] += 1
        if out.exists():
            check_export(out)
        self._time(fork(1, lambda: export(self.folder / "torch", out, "none")))
        check_export(out)
        assert sha256(out / WEIGHTS) == sha256(whole / WEIGHTS)
        self.finished["export"] += 1
        shutil.rmtree(out.parent)

    def report(self) -> dict[str, Any]:
        """What is written."""
        return {
            "command": f"python {' '.join(sys.argv)}",
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


def moment_of(run: Path) -> str:
    """Tell what a run that saves nothing is about to do, as far as its folder shows it."""
    return "in training" if (run / "log.jsonl").exists() else "in preparation"


def outcome(run: Path) -> tuple[str, list[str]]:
    """Checksum of the weights, and what was logged of each step but for times."""
    newest = latest_checkpoint(run)
    assert newest is not None
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [json.dumps({name: value for name, value in line.items() if name not in TIMES}) for line in lines]
    return sha256(newest / WEIGHTS), logged


def fork(ranks: int, action: Callable[[], Any]) -> list[int]:
    """Start so many forks that do an action as ranks of one run; their process ids."""
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
        except (Interrupted, OtherRankError):
            code = 3
        except KeyboardInterrupt:
            code = 4
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return processes


def has_ended(process: int) -> bool:
    """Tell whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(processes: Sequence[int]) -> list[int]:
    """Exit codes, minus the signal for those that were killed.

    Raises:
        RuntimeError: one hangs.

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
        raise RuntimeError("a process failed by itself; its message stands above")
    return list(codes.values())


def make_data(folder: Path) -> None:
    """A store of 40 images with random regions, and two captions of random words of each."""
    generator = np.random.default_rng(0)
    names: dict[str, Any] = {"name": "random", "fingerprint": "0" * 64, "parameters": {}}
    extractor = Extractor(**names, feature_width=16, classes=("circle", "star"), attributes=())
    words = ["a", "red", "blue", "circle", "star", "above", "below", "two"]
    captions = []
    with RegionStoreWriter(folder / "regions", extractor) as writer:
        for image in range(1, 41):
            corners = generator.random((5, 2, 2)).astype(np.float32)
            scores = np.full((5, 1), 0.75, dtype=np.float16)
            writer.add(
                Regions(
                    image_id=str(image),
                    width=100,
                    height=80,
                    boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
                    features=generator.normal(size=(5, 16)).astype(np.float16),
                    class_ids=generator.integers(0, 2, (5, 1)).astype(np.int16),
                    class_scores=scores,
                    attribute_ids=np.zeros((5, 0), dtype=np.int16),
                    attribute_scores=np.zeros((5, 0), dtype=np.float16),
                )
            )
            for number in range(2):
                text = " ".join(generator.choice(words, size=6))
                captions.append({"id": 10 * image + number, "image_id": image, "caption": text})
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))


def make_config(folder: Path, run: Path, stage: int | None, loaders: int) -> PretrainConfig:
    """Twelve steps with dropout, a checkpoint after each second one."""
    content: dict[str, Any] = {"output": run, "regions": folder / "regions", "captions": folder / "captions.json"}
    content |= {"inputs": {"max_regions": 5, "tag_tokens": 6, "text_tokens": 10, "vocabulary": 60}}
    content |= {"model": {"layers": 1, "width": 64, "heads": 2, "inner_width": 128}}
    budgets = {"rows_per_step": 300, "rows_per_micro_batch": 100, "workers": loaders}
    content |= {"training": {"steps": 12, "save_every": 2, "keep": 2, "log_every": 1, "threads": 1, **budgets}}
    if stage is not None:
        content |= {"deepspeed": {"stage": stage, "timeout": 30}}
    return PretrainConfig(**content)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    import deepspeed  # noqa: F401 - here, so that the forks need not

    main()
