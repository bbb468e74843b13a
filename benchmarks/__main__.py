"""Measure, print and write down: `python -m benchmarks NAME`.

A suite is a module here with `run(device, rounds, small)`, which returns what it found. A result goes to
`benchmarks/results/NAME.json`, or `NAME-cuda.json` from a GPU; a small one is only printed. `all` gives each suite a
process of its own, so that none changes the memory and the caches of the next.
"""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.harness import RESULTS, write_result
from dimvl import cpu

SUITES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef run(" in path.read_text()))
PACKAGES = ("transformers", "deepspeed", "h5py", "lmdb", "msgpack", "pycocoevalcap", "torchvision")


def main() -> None:
    """Run one suite, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=["all", *SUITES])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="each runs every variant once; 5 or more where it counts")
    parser.add_argument("--small", action="store_true", help="seconds long: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="file of the result instead of benchmarks/results/NAME.json")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave it out to measure on the processor")
    if options.name == "all":
        if options.out is not None:
            parser.error("--out is for one suite; the results of all go to benchmarks/results")
        arguments = [argument for argument in sys.argv[1:] if argument != "all"]
        failed = [
            name for name in SUITES if subprocess.run([sys.executable, "-m", "benchmarks", name, *arguments]).returncode
        ]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    cpu.configure()
    torch.set_num_threads(1)
    facts = import_module(f"benchmarks.{options.name}").run(options.device, options.rounds, options.small)
    name = options.name if options.device == "cpu" else f"{options.name}-cuda"
    out = options.out or (None if options.small else RESULTS / f"{name}.json")
    imported = tuple(package for package in PACKAGES if package in sys.modules)
    common = {"device": options.device, "rounds": options.rounds, "small": options.small}
    write_result(options.name, imported, out, **{**common, **facts})


if __name__ == "__main__":
    main()
