"""Write the tables of docs/performance.md from benchmarks/results.

    python tools/write_performance_docs.py

What stands between `<!-- name -->` and `<!-- /name -->` is replaced; the sentences around it are written by hand.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def run_of(result: dict[str, Any]) -> str:
    """Tell command, hardware, load and date of a result."""
    load = f", load average {result['load_average'][0]:.1f}" if "load_average" in result else ""
    return f"`{result['command']}`, {result['hardware']}{load}, {result['date']}."


def times(part: dict[str, Any] | None) -> str:
    """Tell a ratio with its spread."""
    return "{:.2f} ({:.2f}-{:.2f})".format(*part["times_slower"]) if part else ""


def store(result: dict[str, Any]) -> str:
    """Reading into a packed batch."""
    half, single = result["warm"]["float16"], result["warm"]["float32"]
    rows = []
    for name, megabytes in result["megabytes"].items():
        row: list[object] = [name, f"{megabytes:.0f}"]
        for by in (half, single):
            row += [f"{by[name]['images_per_cpu_second']:,}" if name in by else "", times(by.get(name))]
        rows.append(row)
    head = ["reader", "MB", "float16: images per CPU second", "times slower", "float32", "times slower"]
    return f"{run_of(result)}\n\n{table(head, rows)}"


def workers(result: dict[str, Any]) -> str:
    """Reading with several processes, warm and cold."""
    by = result["workers_images_per_second"]
    head = ["images per second", *(f"{state}, {n}" for state in by for n in (1, 2, 3, 4))]
    rows = [[name, *(f"{by[s][name][str(n)]:,}" for s in by for n in (1, 2, 3, 4))] for name in by["warm"]]
    return table(head, rows)


def steps(result: dict[str, Any]) -> str:
    """The data part of a training step."""
    rows = [[name, f"{part['images_per_cpu_second']:,}", times(part)] for name, part in result["formats"].items()]
    return f"{run_of(result)}\n\n{table(['read from', 'images per CPU second', 'times slower'], rows)}"


def loaders(result: dict[str, Any]) -> str:
    """Loader processes."""
    rows = []
    for images, by in result["workers"].items():
        for name, part in by.items():
            if name == "pickled_bytes":
                continue
            early, late = (part[key] for key in part if key.startswith("own_mb_after"))
            spans = [f"{min(own)}-{max(own)}" if min(own) != max(own) else f"{own[0]}" for own in (early, late)]
            rows.append(
                [f"{int(images):,}", name, f"{part['images_per_cpu_second']:,}", *spans, f"{max(part['files_mb'])}"]
            )
    head = ["images in the store", "method, processes", "images per CPU second of the workers"]
    return table([*head, "own MB of each, early", "late", "mapped MB"], rows)


def memory(result: dict[str, Any]) -> str:
    """Memory by number of entries."""
    rows = []
    for entries, part in result["entries"].items():
        late = next(value for name, value in part["load"].items() if name.endswith("_steps"))
        figures = [*(part["write"][kind]["peak"] for kind in ("regions", "texts")), late["anonymous"], late["files"]]
        rows.append([f"{int(entries):,}", *(f"{figure:.1f}" for figure in figures), f"{part['load']['pickle']:.2f}"])
    head = ["entries", "peak of writing regions", "peak of writing texts", "loader, own memory", "mapped files"]
    return f"{run_of(result)}\n\n{table([*head, 'pickled for a worker'], rows)}"


def page() -> str:
    """Return the page with its tables as the results have them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, write in (("store", store), ("workers", workers), ("steps", steps), ("loaders", loaders)):
        file = {"workers": "store", "loaders": "steps"}.get(name, name)
        text = replaced(text, name, write(json.loads((RESULTS / f"{file}.json").read_text())))
    return replaced(text, "memory", memory(json.loads((RESULTS / "memory.json").read_text())))


def replaced(text: str, name: str, content: str) -> str:
    """Put content between the marks of a name, which must be there once."""
    text, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"{PAGE} has {count} places for {name}; give it one")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
