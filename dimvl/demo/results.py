"""What a demo reached: `results.json`, the goals, and the content of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from dimvl.data.annotations import read_captions
from dimvl.data.scenes import Fact, judge, parse_caption, read_worlds
from dimvl.demo.config import FEW_LABELS, DemoConfig, DemoPaths
from dimvl.demo.further import FURTHER
from dimvl.demo.report import Baseline, Example, Goal, Question, Region, Report
from dimvl.files import read_json
from dimvl.study.figure import Point

SYNTHETIC = (
    "All images, captions and questions are synthetic: drawn and written by a seeded generator. The images go through "
    "a real detector; the model never sees the generator's boxes."
)
MEMORY_GB = 6.0
MOST_LABELS = {60_000: 0.849}
"""Goal of question answering where the point with the most labels has so many."""
FURTHER_GOALS = {"statements": 0.85, "grounding": 0.95}
"""Accuracy that further tasks should reach."""
RECALLED = ("place", "relation")
"""Kinds of facts that self-critical training must not make rarer."""


def collect_results(paths: DemoPaths, seed: int, seconds: Mapping[str, float], memory_gb: float) -> dict[str, Any]:
    """Collect the scores of all stages; scores are fractions in [0, 1]."""
    optional = ("search", *FURTHER)
    files = {group: paths.scores / f"{group}.json" for group in ("vqa", "caption", "matching", "detector", *optional)}
    scores = {group: read_json(file) for group, file in files.items() if group not in optional or file.is_file()}
    return {"synthetic": True, **scores, "seconds": dict(seconds), "peak_memory_gb": memory_gb, "seed": seed}


def goals_of(results: Mapping[str, Any], minutes: float) -> list[Goal]:
    """Compare the scores with the demo's goals, and its wall-clock time with `minutes`."""
    vqa, caption, matching = results["vqa"], results["caption"], results["matching"]
    recall = caption["fact_recall"] / max(caption["reference_recall"], 1e-9)
    wall = results["seconds"]["wall"] / 60
    few = vqa["few_labels"][str(FEW_LABELS)]
    labels = f"{FEW_LABELS:,} labels"
    before = caption.get("before_self_critical")
    search = results.get("search")
    most = {number: least for number, least in MOST_LABELS.items() if number == vqa["labels"]}
    of_further = {task: least for task, least in FURTHER_GOALS.items() if task in results}
    kept = {} if before is None else {kind: caption[f"{kind}_recall"] - before[f"{kind}_recall"] for kind in RECALLED}
    return [
        Goal(f"VQA with {labels}", few["pretrained"], 0.70),
        Goal(f"VQA with {labels}: gain by pretraining", few["gain"], 0.15),
        Goal(f"VQA with {labels}: lower end of that gain's interval", few["interval"][0], 0.10),
        *[Goal(f"VQA with {number:,} labels", vqa["heldout"], least) for number, least in most.items()],
        Goal(
            f"VQA with {vqa['labels']:,} labels: gain over question-only", vqa["heldout"] - vqa["question_only"], 0.25
        ),
        Goal("captions: fact precision", caption["fact_precision"], 0.95),
        Goal("captions: attribute precision", caption["attribute_precision"], 0.80),
        Goal("captions: place precision", caption["place_precision"], 0.70),
        Goal("captions: relation precision", caption["relation_precision"], 0.70),
        *[Goal(f"captions: {kind} recall, gain over cross entropy", gain, 0.0) for kind, gain in kept.items()],
        Goal("captions: recall relative to the references", recall, 0.80),
        Goal("captions: facts per caption", caption["facts_per_caption"], 3.0),
        Goal("captions: distinct", caption["distinct"], 0.50),
        Goal("matching: random negatives", matching["random"], 0.95),
        Goal("matching: one word changed", matching["one_word"], 0.75),
        *(
            []
            if search is None
            else [
                Goal(
                    f"search: R@1 of {search['images']} images by all captions of an image together",
                    search["all_captions"]["r1"],
                    0.80,
                )
            ]
        ),
        *[Goal(f"{task}: accuracy", results[task]["accuracy"], least) for task, least in of_further.items()],
        Goal("minutes, wall clock on 2 cores", wall, minutes, at_most=True),
        Goal("memory, GB", results["peak_memory_gb"], MEMORY_GB, at_most=True),
    ]


def demo_report(
    config: DemoConfig,
    paths: DemoPaths,
    results: Mapping[str, Any],
    goals: Sequence[Goal],
    *,
    command: str,
    hardware: str,
    day: str,
) -> Report:
    """Collect everything that the report shows."""
    vqa, few_labels = results["vqa"], results["vqa"]["few_labels"]
    inputs = "regions with their names" if config.inputs.region_words else "regions"
    inputs += " and tags" if config.inputs.tag_tokens else ""
    return Report(
        title="dimvl on synthetic scenes",
        note=f"{SYNTHETIC} {config.note}".rstrip(),
        command=command,
        hardware=hardware,
        date=day,
        results=results,
        goals=goals,
        baselines=_baselines(vqa, inputs),
        labels={
            name: [Point(int(number), point[key], *point[f"{key}_interval"]) for number, point in few_labels.items()]
            for name, key in (("pretrained", "pretrained"), ("not pretrained", "none"))
        },
        logs={log.parent.name: log for log in sorted(paths.out.glob("train/*/log.jsonl"))},
        examples=[_example(paths, record) for record in read_json(paths.scores / "examples.json")],
        seconds={name: value for name, value in results["seconds"].items() if name != "wall"},
        budget=sum(config.seconds.values()),
    )


def _baselines(vqa: Mapping[str, Any], inputs: str) -> list[Baseline]:
    asked = f"{vqa['labels']:,} labels"
    return [
        Baseline(f"pretrained, {asked}", vqa["heldout"], inputs, vqa["heldout_interval"], ours=True),
        Baseline("ground-truth boxes", vqa["ground_truth_boxes"], "the same model, boxes from the generator"),
        Baseline("pretrained, no labels", vqa["zero_shot"], f"{inputs}; statements judged by matching"),
        Baseline(
            f"no pretraining, {asked}",
            vqa["no_pretraining"],
            "the same, from scratch, with its own best number of steps",
        ),
        Baseline(f"question only, {asked}", vqa["question_only"], "no regions and no names, from scratch"),
        Baseline("most common answer", vqa["majority"], "of the training questions"),
    ]


def _example(paths: DemoPaths, record: Mapping[str, Any]) -> Example:
    """Join what a model predicted for an image with what is true of it."""
    folder = paths.scenes / "heldout"
    image = int(record["image_id"])
    world = read_worlds(folder / "worlds.jsonl")[image]
    regions = {tuple(region["box"]): region for question in record["questions"] for region in question["regions"]}
    indices = {box: index for index, box in enumerate(regions)}
    return Example(
        image=folder / "images" / record["picture"],
        regions=[
            Region(box, " ".join([*region["attributes"], region["name"]]), region["score"])
            for box, region in regions.items()
        ],
        caption=record["caption"],
        references=[item.text for item in read_captions(folder / "captions.json") if int(item.image_id) == image],
        facts=[(_in_words(fact), judge(fact, world)) for fact in parse_caption(record["caption"]) or []],
        questions=[
            Question(
                question["question"],
                question["expected"],
                question["answers"],
                [(indices[tuple(region["box"])], region["probability_drop"]) for region in question["regions"]],
            )
            for question in record["questions"]
        ],
    )


def _in_words(fact: Fact) -> str:
    name = fact.phrase.singular()
    if fact.kind == "relation" and fact.other is not None:
        return f"{name}: {fact.side} of {fact.other.singular()}"
    if fact.kind == "count":
        return f"{fact.count} x {name}"
    if fact.kind == "place":
        return f"{name}: {fact.place}"
    return f"{name}: {fact.adjective}" if fact.kind == "attribute" else f"there is {fact.phrase.with_article()}"
