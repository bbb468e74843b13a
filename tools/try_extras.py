"""Install the wheel into new environments without the checkout, each extra alone, and run the tests of what it brings.

python -m tools.try_extras OUT [--extras EXTRA ...]

The first environment has no extras and runs the quick demo. The environment of an extra sees the packages of the first
one, and has besides only what the extra brings, at the versions of `constraints.txt`. Tests run from a copy of
`tests/`, `tools/`, `configs/` and `examples/` in OUT. It fails if a test does, or if none of an extra's tests runs.
Writes OUT/extras.json and prints a line for each.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dimvl.files import write_json

ROOT = Path(__file__).parents[1]
TESTS = {
    "import": ["regions/importers/test_import.py"],
    "metrics": ["metrics/test_measures.py"],
    "detectors": ["regions/detectors/test_library_models.py"],
    "photos": ["data/test_noise.py"],
    "parquet": ["regions/sources/test_parquet.py"],
    "video": ["regions/test_decoded_videos.py"],
    "retrieval": ["metrics/test_recall.py"],
    "faiss": ["search/test_approximate.py"],
    "app": ["app/test_results.py"],
    "serve": ["serve/test_serving.py"],
    "adapters": ["adapters/test_adapters.py"],
    "onnx": ["test_program.py"],
    "wandb": ["training/test_wandb.py"],
    "tensorboard": ["training/test_tensorboard.py"],
    "deepspeed": ["training/test_deepspeed_options.py"],
    "encoder": ["model/test_packaged_encoder.py"],
}
"""Tests of each extra, a part of which needs it. The extras `docs` and `notebook` are for a checkout."""
NONE = "none"
"""The name of the environment without extras."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--extras", nargs="+", choices=TESTS, default=list(TESTS), metavar="EXTRA")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tests", "tools", "configs", "examples"):
        shutil.copytree(ROOT / name, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (out / "pytest.ini").write_text("[pytest]\nmarkers = slow\n", encoding="utf-8")
    wheel = build_wheel(out)
    found = {NONE: without_extras(out, wheel)}
    for extra in arguments.extras:
        found[extra] = with_extra(out, wheel, extra)
        print(extra, found[extra], flush=True)
        write_json(out / "extras.json", found)
    sys.exit(any(each["failed"] for each in found.values()))


def build_wheel(out: Path) -> Path:
    """Build the wheel from a copy, so that nothing of an earlier build gets into it."""
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("dimvl-*.whl"))


def without_extras(out: Path, wheel: Path) -> dict[str, Any]:
    """Install the wheel alone, and run the quick demo."""
    seconds = install(out, NONE, str(wheel))
    done = subprocess.run(
        [out / NONE / "bin" / "dimvl", "demo", "--quick", "--out", out / "demo"], cwd=out, env=clean()
    )
    install(out, NONE, "pytest", "hypothesis", "httpx")  # for the tests
    return {"seconds": seconds, "failed": int(done.returncode != 0)}


def with_extra(out: Path, wheel: Path, extra: str) -> dict[str, Any]:
    """Install one extra beside the packages of the first environment, and run its tests."""
    environment = out / extra
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        (site(environment) / "without_extras.pth").write_text(f"{site(out / NONE)}\n", encoding="utf-8")
    before = packages(environment)
    seconds = install(out, extra, f"{wheel}[{extra}]")
    tests = [f"tests/{name}" for name in TESTS[extra]]
    command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *tests]
    done = subprocess.run(command, cwd=out, env=clean(), capture_output=True, text=True)
    (out / f"{extra}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout[-200:])}
    failed = int(done.returncode != 0 or not counts.get("passed"))
    return {"seconds": seconds, "packages": len(packages(environment) - before), **counts, "failed": failed}


def install(out: Path, name: str, *wanted: str) -> float:
    """Install packages into the environment of a name, which is made if it is missing; return the seconds."""
    if not (out / name).exists():
        subprocess.run([sys.executable, "-m", "venv", out / name], check=True)
    start = time.perf_counter()
    pip = [out / name / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, *wanted], check=True)
    return round(time.perf_counter() - start, 1)


def site(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def packages(environment: Path) -> set[str]:
    return {path.name for path in site(environment).glob("*.dist-info")}


def clean() -> dict[str, str]:
    """Return this process's environment without what points to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    main()
