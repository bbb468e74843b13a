"""Train statements about three boxes (NLVR), generated ones first, then people's by cross-validation, for each seed.

python -m tools.run_nlvr DATA runs/nlvr --seeds 0 1 2 --threads 2

DATA is a folder with the reader's own copy of NLVR: `statements.jsonl`, the lines of an official file such as
`dev.json`. The three boxes of a drawing are three images, and the objects in `structured_rep` their regions: boxes,
names (shape, size and colour) and, as features, these names as ones and zeros; the drawings themselves are not read.
There are 5 folds: statements of one prefix number of `identifier`, and of one sentence, are all in the same. Training
sees each statement with its boxes in all six orders, as the official training set does. Before, the model is trained
on statements that `tools/nlvr_statements.py` generates about drawings of its own, and then on some of these beside
people's; the run `alone` goes without. Each command of `stages` runs in its own process in OUT. One that has ended is
skipped when this tool runs again, and one that was interrupted goes on. Writes OUT/nlvr.json, or another file by
--results.

--values are keys of configs/nlvr/classify.yaml for all trainings of the folds.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.data.annotations import read_items
from dimvl.data.annotations.items import NLVR
from dimvl.errors import UserError
from dimvl.fields import lines
from dimvl.files import atomic_path
from dimvl.metrics import intervals
from dimvl.showing import short
from tools.nlvr_statements import Writer
from tools.stages import (
    ROOT,
    Stage,
    argument_parser,
    dimvl,
    link,
    read_lines,
    rounded,
    run_all,
    save_results,
    t_interval,
    told_by,
    typed,
    write_lines,
)

STATEMENTS, FOLDS, SIDE = "statements.jsonl", 5, 100
"""The file of statements, the number of folds, and the pixels of a box."""
SHAPES = ("circle", "square", "triangle")
SIZES, COLOURS = {10: "small", 20: "medium", 30: "large"}, {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
NAMES = (*SIZES.values(), *COLOURS.values())
"""Names of sizes and colours; an object has one of each."""
GENERATED, DRAWINGS, AGAIN = 100_000, 2000, 8000
"""Generated statements, the drawings of towers for them (half as many are scattered), and those trained on again."""
RUNS = {
    "classify": ["items=[folds/train-{fold}.jsonl,again.jsonl]", "initial=seed-{seed}/generated"],
    "alone": ["items=folds/train-{fold}.jsonl", "training.steps=400", "training.learning_rate=5e-4"],
}
"""Overrides of each run."""


def main() -> None:
    parser = argument_parser(__doc__, "nlvr.json", data="folder with NLVR")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["classify"])
    parser.add_argument("--values", nargs="+", default=[], metavar="KEY=VALUE", help="of the configuration")
    arguments = parser.parse_args()
    with told_by(parser):
        lay_out(arguments.data, arguments.out)
    planned = stages(arguments.runs, arguments.seeds, arguments.threads, arguments.values)
    run_all(planned, arguments.out)
    command = typed(arguments, "-m", "tools.run_nlvr")
    save_results(arguments, command, planned, results(arguments.out, arguments.runs, arguments.seeds))


def lay_out(data: Path, out: Path, generated: int = GENERATED) -> None:
    """Write the objects of each box, their vocabularies, the folds, and so many generated statements."""
    path = data / STATEMENTS
    if (form := read_items(path).format) != NLVR:
        raise UserError(f"{path} is a file of {form}; give statements of NLVR, version 1")
    statements = [line for _, line in lines(path)]
    records = read_lines(path)
    for folder in (out / "objects", out / "folds"):
        folder.mkdir(parents=True, exist_ok=True)
    link(out / "configs", ROOT / "configs")
    for record in records:
        for box, objects in enumerate(record["structured_rep"]):
            write_regions(out / "objects" / f"{record['identifier']}-box{box}.npz", objects)
    for name, names in (("shapes", SHAPES), ("names", NAMES)):
        write_lines(out / f"{name}.txt", names)
    own = folds(records)
    for fold in range(FOLDS):
        test = [line for line, number in zip(statements, own, strict=True) if number == fold]
        train = [record for record, number in zip(records, own, strict=True) if number != fold]
        write_lines(out / "folds" / f"test-{fold}.jsonl", test)
        write_lines(out / "folds" / f"train-{fold}.jsonl", in_all_orders(train))
    write_lines(out / "folds" / "test-all.jsonl", statements)
    if not (out / "generated.jsonl").exists():
        write_generated(out, generated)


def write_generated(out: Path, number: int) -> None:
    """Write generated statements, and the objects of the drawings that they are about."""
    writer = Writer(seed=0)
    towers, scattered = writer.drawings(min(DRAWINGS, number))
    names = {id(drawing): f"generated-{place}" for place, drawing in enumerate([*towers, *scattered])}
    for drawing in [*towers, *scattered]:
        for box, items in enumerate(drawing):
            write_regions(out / "objects" / f"{names[id(drawing)]}-box{box}.npz", [item.record() for item in items])
    items = []
    for place in range(number):
        text, drawing, true = writer.statement(towers, scattered)
        images = [f"{names[id(drawing)]}-box{box}" for box in writer.random.permutation(3).tolist()]
        items.append({"id": f"generated-{place}", "images": images, "text": text, "label": str(true).lower()})
    write_lines(out / "again.jsonl", items[:AGAIN])
    write_lines(out / "generated.jsonl", items)


def write_regions(file: Path, objects: Sequence[dict[str, Any]]) -> None:
    """Write the objects of a box as regions in the plain layout of docs/importing.md; a file that is there stays.

    Raises:
        UserError: an object is not one of NLVR.

    """
    if file.exists():
        return
    rows, shapes, names = [], [], []
    for one in objects:
        try:
            shapes.append(SHAPES.index(one["type"]))
            names.append([NAMES.index(SIZES[one["size"]]), NAMES.index(COLOURS[one["color"].lower()])])
            left, top = float(one["x_loc"]), float(one["y_loc"])
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(f"{file.stem}: {short(one)} is not an object of NLVR; give the official file") from None
        rows.append([left, top, min(left + one["size"], SIDE), min(top + one["size"], SIDE)])
    known = np.zeros((len(rows), len(SHAPES) + len(NAMES)), dtype=np.float32)
    for row, shape, own in zip(known, shapes, names, strict=True):
        row[[shape, *(len(SHAPES) + name for name in own)]] = 1
    with atomic_path(file) as temporary, temporary.open("wb") as opened:
        np.savez(
            opened,
            features=known,
            boxes=np.array(rows, dtype=np.float32).reshape(-1, 4),
            size=np.array([SIDE, SIDE]),
            class_ids=np.array(shapes, dtype=np.int64)[:, None],
            class_scores=np.ones((len(rows), 1), dtype=np.float32),
            attribute_ids=np.array(names, dtype=np.int64).reshape(-1, 2),
            attribute_scores=np.ones((len(rows), 2), dtype=np.float32),
        )


def folds(records: Sequence[dict[str, Any]]) -> list[int]:
    """Return the fold of each statement; statements of one prefix number or one sentence have the same."""
    group: dict[str, str] = {}
    for record in records:  # a sentence belongs to the prefix number that it came with first, and so on
        prefix, sentence = record["identifier"].split("-")[0], record["sentence"].strip().lower()
        names = [name for name in (f"prefix {prefix}", f"sentence {sentence}") if name in group]
        old = {group[name] for name in names}
        new = min(old, default=prefix)
        group |= {name: new for name, one in group.items() if one in old}
        group |= dict.fromkeys((f"prefix {prefix}", f"sentence {sentence}"), new)
    own = [group[f"prefix {record['identifier'].split('-')[0]}"] for record in records]
    distinct = sorted(set(own), key=int)
    order = np.random.default_rng(8).permutation(len(distinct))
    fold = {distinct[place]: number % FOLDS for number, place in enumerate(order.tolist())}
    return [fold[one] for one in own]


def in_all_orders(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each statement with its boxes in all six orders, as own JSON lines."""
    for record in records:
        for number, order in enumerate(permutations(range(3))):
            images = [f"{record['identifier']}-box{box}" for box in order]
            own = {"id": f"{record['identifier']}-{number}", "images": images, "text": record["sentence"]}
            yield {**own, "label": record["label"].lower()}


def stages(runs: Sequence[str], seeds: Sequence[int], threads: int, values: Sequence[str] = ()) -> list[Stage]:
    """Return what makes the regions, and what trains and scores each fold with each seed."""
    names = ["--classes", "shapes.txt", "--attributes", "names.txt", "--extractor", "nlvr"]
    planned = [Stage("import", dimvl("import", "objects", "stores/regions", *names))]

    def add(folder: str, config: str, test: str, *own: str) -> None:
        given = [f"output={folder}", f"training.threads={threads}", *own]
        score = ["--regions", "stores/regions", f"items=folds/{test}.jsonl", "--threads", str(threads)]
        planned.append(Stage(folder, dimvl("finetune", f"configs/nlvr/{config}.yaml", *given)))
        planned.append(Stage(f"{folder}-scores", dimvl("evaluate", folder, *score)))

    for seed in seeds:
        if "classify" in runs:
            add(f"seed-{seed}/generated", "generated", "test-all", f"seed={seed}")
        for run, fold in product(runs, range(FOLDS)):
            changed = [one.format(seed=seed, fold=fold) for one in RUNS[run]]
            add(f"seed-{seed}/{run}-{fold}", "classify", f"test-{fold}", f"seed={seed}", *changed, *values)
    return planned


def results(out: Path, runs: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the scores of the first run, those of the others by their names, and of generated statements alone."""
    found = {run: summary(out, [f"{run}-{fold}" for fold in range(FOLDS)], seeds) for run in runs}
    if "classify" in runs:
        found["generated_only"] = summary(out, ["generated"], seeds)
    legend = "95%: bootstrap over prefix numbers, means over seeds; t over seeds"
    return {"intervals": legend, "seeds": list(seeds), "folds": FOLDS, **found.pop(runs[0]), **found}


def summary(out: Path, parts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return accuracy and consistency over all statements, each predicted by the models that had not seen it."""
    every = {seed: predictions([out / f"seed-{seed}" / part for part in parts]) for seed in seeds}
    truth = {name: item["labels"][0] for name, item in every[seeds[0]].items()}
    right = {seed: np.array([own[name]["means"]["accuracy"] for name in truth]) for seed, own in every.items()}
    prefixes = [name.split("-")[0] for name in truth]
    means = np.mean(list(right.values()), axis=0)
    by_seed = [float(values.mean()) for values in right.values()]
    consistent = [
        np.mean([item["means"]["consistency"] for item in own.values() if "consistency" in item["means"]])
        for own in every.values()
    ]
    return {
        "accuracy": round(float(means.mean()), 4),
        "consistency": round(float(np.mean(consistent)), 4),
        "majority": round(Counter(truth.values()).most_common(1)[0][1] / len(truth), 4),
        "interval": rounded(intervals.mean_interval(means, prefixes)),
        "interval_over_seeds": t_interval(by_seed),
        "by_seed": rounded(by_seed),
        "statements": len(truth),
    }


def predictions(runs: Sequence[Path]) -> dict[str, Any]:
    """Return the items that runs of a seed were scored on, by identifier in one order."""
    items = [item for run in runs for item in read_lines(run / "evaluation" / "items.jsonl")]
    return {item["text_id"]: item for item in sorted(items, key=lambda item: str(item["text_id"]))}


if __name__ == "__main__":
    main()
