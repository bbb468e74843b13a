"""Run a benchmark and write its result: `python -m benchmarks NAME`.

A suite is a module here with `run(device, rounds, small, folder)`, which returns its result; `folder` is temporary.
The result goes to `benchmarks/results/NAME.json`, or `NAME-cuda.json` from a GPU; with --small it is only printed.
A suite that measures on a user's own data has a further `data`, the folder that --data names.
`all` runs each suite in its own process, so that none affects the memory and the caches of the next; those that
need data only where --data is given.
"""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import RESULTS, write_result

_TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py")}
SUITES = tuple(sorted(name for name, text in _TEXTS.items() if "\ndef run(" in text))
WITH_DATA = tuple(name for name in SUITES if "data: Path | None = None" in _TEXTS[name])


def main() -> None:
    """Run one suite, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=["all", *SUITES])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each variant runs; 5 or more for a real result"
    )
    parser.add_argument(
        "--small", action="store_true", help="takes seconds: checks that the suite works, not the speed"
    )
    parser.add_argument("--data", type=Path, help=f"folder of data, for {', '.join(WITH_DATA)}")
    parser.add_argument("--out", type=Path, help="file for the result instead of benchmarks/results/NAME.json")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; omit it to measure on the CPU")
    if options.name == "all":
        if options.out is not None:
            parser.error("--out is for one suite; the results of all go to benchmarks/results")
        arguments = [argument for argument in sys.argv[1:] if argument != "all"]
        suites = [name for name in SUITES if options.data is not None or name not in WITH_DATA]
        failed = [
            name for name in suites if subprocess.run([sys.executable, "-m", "benchmarks", name, *arguments]).returncode
        ]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        suite = import_module(f"benchmarks.{options.name}")
        data = {"data": options.data} if options.name in WITH_DATA else {}
        facts = suite.run(options.device, options.rounds, options.small, Path(folder), **data)
    name = options.name if options.device == "cpu" else f"{options.name}-cuda"
    out = options.out or (None if options.small else RESULTS / f"{name}.json")
    common = {"device": options.device, "rounds": options.rounds, "small": options.small}
    write_result(options.name, out, **{**common, **facts})


if __name__ == "__main__":
    main()
