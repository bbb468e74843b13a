"""Kill `dimvl bootstrap` at random moments and check that it resumes to the bytes of an undisturbed one.

python -m tools.kill_bootstrap --out docs/results/bootstrap-kills.json --kills 100

One or two processes get SIGKILL one to four times, at moments that are drawn over the time that an undisturbed run
takes, or when some more blocks have appeared, and start again; the number of processes changes from start to start.
Then they may end, and every file must be that of the undisturbed run. Processes are forks of this one. Data and models
are synthetic, so nothing is learnt.
"""

import argparse
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dimvl.bootstrap.run
from dimvl.bootstrap.config import BootstrapConfig
from dimvl.bootstrap.run import bootstrap
from dimvl.files import write_json
from dimvl.regions.sources.base import Part
from dimvl.training.run import run_training
from tools.study_kills import fork, has_ended, make_config, make_data, wait

IMAGES_IN_BLOCK = 3
"""Instead of 512, so that a run of seconds has many blocks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="determines moments and numbers of processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dimvl.bootstrap.run.BLOCK = IMAGES_IN_BLOCK
    drawn, kills, ended = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        [code] = wait(fork(1, lambda: run_training(make_config(folder, folder / "model", None, 0))))
        assert code == 0, "the training of the model failed"
        config = config_of(folder, folder / "undisturbed")
        seconds = undisturbed(config)
        while kills.total() < options.kills:
            trial = config.model_copy(update={"output": folder / f"trial-{ended}"})
            kills += kill_and_resume(trial, drawn, seconds, drawn.randint(1, 4))
            assert contents(trial.output) == contents(config.output), f"{trial.output} differs from the undisturbed run"
            shutil.rmtree(trial.output)
            ended += 1
            report = {
                "command": " ".join(["python -m tools.kill_bootstrap", *sys.argv[1:]]),
                "date": date.today().isoformat(),
                "hardware": f"{os.cpu_count()}-core {platform.machine()}, load average {os.getloadavg()[0]:.1f}",
                "kills": dict(sorted(kills.items())),
                "finished as the undisturbed one": ended,
                "different": 0,  # the first one would have ended the trial
                "seconds of the undisturbed one": round(seconds, 1),
            }
            write_json(options.out, report)
            print(f"{kills.total()} kills; {ended} equal the undisturbed one", flush=True)


def config_of(folder: Path, output: Path) -> BootstrapConfig:
    """Use the model of the kill study as captioner and filter of the captions that it was trained on."""
    given: dict[str, Any] = {"regions": folder / "regions", "captions": folder / "captions.json", "allow_trained": True}
    given |= {"captioner": folder / "model", "filter": folder / "model", "device": "cpu", "output": output}
    return BootstrapConfig(**given)


def undisturbed(config: BootstrapConfig) -> float:
    """Run undisturbed and return how many seconds it takes."""
    start = time.monotonic()
    assert wait(fork(1, lambda: bootstrap(config, "cpu"))) == [0], "the undisturbed run failed"
    return time.monotonic() - start


def kill_and_resume(config: BootstrapConfig, drawn: random.Random, seconds: float, kills: int) -> Counter[str]:
    """Start one or two processes and kill them at a random moment, a number of times; then let it end.

    Half of the moments are drawn over `seconds`; the others come when some more blocks have appeared.

    Returns:
        The kills that came before the end, by number of processes and whether blocks were there.

    """
    done = Counter[str]()
    for last in [*[False] * kills, True]:
        number = drawn.choice([1, 2])
        processes = [
            process
            for own in range(number)
            for process in fork(1, partial(bootstrap, config, "cpu", Part(own + 1, number)))
        ]
        if not last:
            _await_moment(config.output / "blocks", processes, drawn, seconds)
            there = _blocks(config.output / "blocks")
            for process in processes:
                os.kill(process, signal.SIGKILL)  # works on one that has ended too: it is still a zombie
        if any(wait(processes)):
            assert not last, "the run failed on its own"
            done[f"{number} of {number}, {'with blocks' if there else 'before the first block'}"] += 1
    return done


def _await_moment(folder: Path, processes: Sequence[int], drawn: random.Random, seconds: float) -> None:
    wanted = _blocks(folder) + drawn.randint(1, 3)
    if drawn.random() < 0.5:
        time.sleep(drawn.uniform(0, seconds))
        return
    while _blocks(folder) < wanted and not all(map(has_ended, processes)):
        time.sleep(0.0005)


def _blocks(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in folder.iterdir()) if folder.exists() else 0


def contents(output: Path) -> dict[str, bytes]:
    """Files of a folder by name; what a kill left behind under a temporary name does not count."""
    files = (path for path in output.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


if __name__ == "__main__":
    main()
