"""Write the tables of docs/performance.md and docs/performance-data.md from benchmarks/results.

    python -m tools.write_performance_docs

What stands between `<!-- name -->` and `<!-- /name -->` is replaced; the sentences around it are written by hand.
Whether a goal is met is computed here (`tools/performance_goals.py`).
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.performance_goals import Results, all_goals

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("performance.md", "performance-data.md")]
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


def goals(results: Results) -> str:
    """Every goal with its figure."""
    rows = [[goal.work, goal.wanted, goal.figure, goal.verdict] for goal in all_goals(results)]
    return table(["work", "goal", "figure", ""], rows)


def train(result: dict[str, Any]) -> str:
    """Samples a second and ratios of all variants, by length file and precision."""
    rows = []
    for kind, by in result["files"].items():
        single, half = by["fp32"], by["bf16"]
        title = f"{kind}, {single['layers']} layers, {single['rows']:.0f} rows a batch"
        for name, part in single["variants"].items():
            row: list[object] = [title, name, f"{part['padding']:.2f}"]
            for found in (part, half["variants"][name]):
                row += [f"{found['samples_per_second']:.2f}", times(found)]
            rows.append(row)
            title = ""
    head = ["length file", "variant", "padded over real rows", "fp32: samples a second", "time over dimvl's"]
    head += ["bf16", "time over dimvl's"]
    return f"{run_of(result)}\n\n{table(head, rows)}"


def settings(result: dict[str, Any]) -> str:
    """Time compiled over not compiled, and what was chosen."""
    by = result["settings"]
    rows = []
    for name in _tried(by["fp32"]):
        rows.append([name, *(cell for precision in ("fp32", "bf16") for cell in _compiled(by[precision], name))])
    rows.append(
        ["attention of the padded peers", *(cell for found in by.values() for cell in (found["attention"], ""))]
    )
    head = ["compiled over not compiled", "fp32", "seconds to compile", "bf16", "seconds to compile"]
    return table(head, rows)


def decoding_settings(result: dict[str, Any]) -> str:
    """Time compiled over not compiled."""
    found = result["settings"]
    head = ["", "compiled over not compiled", "seconds to compile"]
    return table(head, [[name, *_compiled(found, name)] for name in _tried(found)])


def _tried(settings: dict[str, Any]) -> list[str]:
    return [*settings["compiled_over_eager"], *settings["not_compiled"]]


def _compiled(settings: dict[str, Any], name: str) -> list[str]:
    """Tell the time compiled over not compiled, or why a variant is not compiled, and the seconds to compile."""
    if name in settings["not_compiled"]:
        return [settings["not_compiled"][name], ""]
    ratios, seconds = settings["compiled_over_eager"][name], settings["compile_seconds"][name]
    return ["{:.2f} ({:.2f}-{:.2f})".format(*ratios), f"{seconds}"]


def decoupled(result: dict[str, Any]) -> str:
    """Separate against shared projections."""
    part, rows = result["decoupled"], []
    for precision in ("fp32", "bf16"):
        found = part[precision]
        flops = " and ".join(f"{count / 1e9:.2f}" for count in found["flops"].values())
        rows.append([precision, flops, "{:.3f} ({:.3f}-{:.3f})".format(*found["time_ratio"]), found["upper_bound"]])
    head = ["", "GFLOP, `[qkv]` and `[]`", f"time ratio, {part['pairs']} pairs", "upper end of 95%"]
    return table(head, rows)


def growth(result: dict[str, Any]) -> str:
    """Time per row by rows of a step."""
    by = result["growth"]["microseconds_per_row"]
    head = ["rows of a step", *(f"{int(rows):,}" for rows in by)]
    return table(head, [["microseconds a row", *(f"{value:.0f}" for value in by.values())]])


def captions(result: dict[str, Any]) -> str:
    """Shared prefixes against pairs."""
    rows = []
    for name, part in result["captions"].items():
        losses = " and ".join(f"{loss:.5f}" for loss in part["losses"].values())
        spread = "{:.2f} ({:.2f}-{:.2f})".format(*part["time_ratio"])
        rows.append([name, f"{part['flop_ratio']:.2f}", spread, f"{part['share_of_flop_ratio'][0]:.0%}", losses])
    head = ["regions + words", "operations, pairs over shared", "time, pairs over shared", "of the operations' ratio"]
    return f"{run_of(result)}\n\n{table([*head, 'losses'], rows)}"


def gpu(result: dict[str, Any]) -> str:
    """A run on a GPU, and where the time of its steps goes."""
    run, found = result["run"], result["run"]["profile"]
    told = (
        f"{run_of(result)} {run['samples_per_step']} samples a step, dropout {run['dropout']}, compiled: "
        f"{run['samples_per_second']:,.0f} samples a second, {run['utilisation']:.1%} of the product's rate, data wait "
        f"{run['data_wait']:.2%}. By part, under the profiler, {found['seconds'] * 1e3:.0f} ms a step, memory "
        f"{found['memory_gb']:.1f} GB; a product of 8192^3 has {found['peak'] / 1e12:.0f} TFLOP/s, a copy moves "
        f"{found['copy_rate'] / 1e12:.2f} TB/s:"
    )
    rows = []
    for part in sorted(found["parts"], key=lambda part: -part["seconds"]):
        seconds, flops = part["seconds"], part["flops"]
        products = [f"{flops / 1e9:,.0f}", f"{flops / seconds / found['peak']:.0%}"] if flops else ["", ""]
        rows.append([part["name"], f"{seconds * 1e3:.1f}", *products, part["roof"]])
    return f"{told}\n\n{table(['part', 'ms', 'GFLOP', 'of the rate', 'roof'], rows)}"


def store(result: dict[str, Any]) -> str:
    """Reading into a packed batch."""
    kept, single = result["warm"]["kept"], result["warm"]["float32"]
    rows = []
    for name, megabytes in result["megabytes"].items():
        row: list[object] = [name, f"{megabytes:.0f}"]
        for by in (kept, single):
            row += [f"{by[name]['images_per_cpu_second']:,}" if name in by else "", times(by.get(name))]
        rows.append(row)
    head = ["reader", "MB", "as kept: images per CPU second", "times slower", "float32", "times slower"]
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


def decoding(result: dict[str, Any]) -> str:
    """Captions a second, and how many times as long others take."""
    others = {
        "VLP's policy, our kernels": "VLP's policy",
        "BLIP's decoder": "BLIP",
        "BLIP's decoder, our kernels": "BLIP, our kernels",
        "ours, weights not laid out": "ours, weights not laid out",
        "ours without cache": "ours without cache",
        "our prefix alone": "our prefix alone",
    }
    rows = [
        [beams, lengths, count, found["ours"]["captions_per_second"], *(times(found.get(name)) for name in others)]
        for beams, by_lengths in result["batches"].items()
        for lengths, by_batch in by_lengths.items()
        for count, found in by_batch.items()
    ]
    head = ["search", "lengths", "batch", "captions a CPU second", *others.values()]
    return f"{run_of(result)}\n\n{table(head, rows)}"


def prediction(result: dict[str, Any]) -> str:
    """Questions on one picture, folders, and fresh processes."""
    head = ["", "number", "a CPU second", "one by one over at once"]
    rows = [
        [f"questions on one picture, {name}", count, part["questions_per_second"], _spread(part, "one_by_one")]
        for name, by_count in result["questions"].items()
        for count, part in by_count.items()
    ]
    pictures = result["folders"]["pictures"]
    rows += [
        [f"{name} of pictures", pictures, part["pictures_per_second"], _spread(part, "single")]
        for name, part in result["folders"].items()
        if name != "pictures"
    ]
    cold = result["cold_start"]
    starts = [[f"`{name}`", part["wall"], part["processor"]] for name, part in cold["seconds"].items()]
    over = cold["answer_over_import_torch"]
    starts.append(["first answer over `import torch`", over["wall"], over["processor"]])
    fresh = table(["fresh process", "seconds of wall time", "of processor time"], starts)
    return f"{run_of(result)}\n\n{table(head, rows)}\n\n{fresh}"


def _spread(part: dict[str, Any], name: str) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*part[f"{name}_times_slower"])


TRAINING = {"train": train, "settings": settings, "decoupled": decoupled, "growth": growth}
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    **{name: ("train", write) for name, write in TRAINING.items()},
    "captions": ("end_to_end", captions),
    "gpu": ("end_to_end-cuda", gpu),
    "gpu_captions": ("end_to_end-cuda", captions),
    **{name: ("store", write) for name, write in (("store", store), ("workers", workers))},
    **{name: ("steps", write) for name, write in (("steps", steps), ("loaders", loaders))},
    "memory": ("memory", memory),
    "decoding": ("decode", decoding),
    "decoding_settings": ("decode", decoding_settings),
    "prediction": ("inference", prediction),
}


def read_results() -> Results:
    """All results by the name of their file, without `.json`."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def page(path: Path) -> str:
    """Return a page with its tables as the results have them."""
    text, results = path.read_text(encoding="utf-8"), read_results()
    for name in re.findall(r"^<!-- (\w+) -->$", text, flags=re.MULTILINE):
        if name == "goals":
            content = goals(results)
        else:
            file, write = TABLES[name]
            content = write(results[file]) if file in results else f"Not measured yet: `python -m benchmarks {file}`."
        text = replaced(text, name, content)
    return text


def replaced(text: str, name: str, content: str) -> str:
    """Put content between the marks of a name, which must be there once."""
    text, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"the page has {count} places for {name}; give it one")
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path), encoding="utf-8")
