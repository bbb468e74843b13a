"""What came out of the demo: `results.json`, goals met and not met, and the content of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations import read_captions
from dimvl.data.scenes import judge, parse_caption, read_worlds
from dimvl.data.scenes.facts import Fact
from dimvl.demo.config import DemoConfig, Places
from dimvl.demo.report import Baseline, Curve, DemoReport, Example, Goal, QuestionNote, RegionNote
from dimvl.files import read_json

SYNTHETIC = (
    "All pictures, captions and questions are synthetic: drawn and written by a seeded generator. The pictures go "
    "through a real detector; the model never sees the generator's boxes."
)
MEMORY_GB = 6.0


def collect_results(places: Places, seed: int, seconds: Mapping[str, float], memory_gb: float) -> dict[str, Any]:
    """Put the scores of all stages together; scores are fractions in [0, 1]."""
    groups = ("vqa", "caption", "matching", "detector")
    scores = {group: read_json(places.scores / f"{group}.json") for group in groups}
    return {
        "synthetic": True,
        **scores,
        "seconds": dict(seconds),
        "peak_memory_gb": memory_gb,
        "seed": seed,
    }


def goals_of(results: Mapping[str, Any], minutes: float) -> list[Goal]:
    """Compare the scores with the goals of the demo, and its wall clock with so many minutes."""
    vqa, caption, matching = results["vqa"], results["caption"], results["matching"]
    recall = caption["fact_recall"] / max(caption["reference_recall"], 1e-9)
    rows = [
        ("VQA, held-out", vqa["heldout"], 0.80),
        ("VQA over question-only", vqa["heldout"] - vqa["question_only"], 0.25),
        ("VQA over no pretraining, beyond its interval", vqa["pretraining_gain"], vqa["pretraining_gain_interval"]),
        ("captions: fact precision", caption["fact_precision"], 0.90),
        ("captions: attribute precision", caption["attribute_precision"], 0.80),
        ("captions: relation precision", caption["relation_precision"], 0.80),
        ("captions: recall over the references' own", recall, 0.80),
        ("captions: facts per caption", caption["facts_per_caption"], 3.0),
        ("captions: distinct", caption["distinct"], 0.50),
        ("matching: random negatives", matching["random"], 0.95),
        ("matching: one word changed", matching["one_word"], 0.75),
    ]
    limits = [
        ("minutes, wall clock on 2 cores", results["seconds"]["wall"] / 60, minutes),
        ("memory, GB", results["peak_memory_gb"], MEMORY_GB),
    ]
    return [Goal(name, value, goal, value >= goal) for name, value, goal in rows] + [
        Goal(name, value, limit, value <= limit, at_most=True) for name, value, limit in limits
    ]


def demo_report(
    config: DemoConfig,
    places: Places,
    results: Mapping[str, Any],
    goals: Sequence[Goal],
    *,
    command: str,
    hardware: str,
    day: str,
) -> DemoReport:
    """Fill the page."""
    vqa = results["vqa"]
    given = "regions and tags" if config.inputs.tag_tokens else "regions"
    baselines = [
        Baseline("pretrained and fine-tuned", vqa["heldout"], given, vqa["heldout_interval"], ours=True),
        Baseline("ground-truth boxes", vqa["ground_truth_boxes"], "the same model, boxes from the generator"),
        Baseline("no pretraining", vqa["no_pretraining"], "the same fine-tuning from scratch, same steps"),
        Baseline("question only", vqa["question_only"], "no regions and no tags, from scratch, same steps"),
        Baseline("most common answer", vqa["majority"], "of the training questions"),
    ]
    runs = [folder for folder in sorted((places.out / "train").iterdir()) if (folder / "log.jsonl").exists()]
    return DemoReport(
        title="dimvl on synthetic scenes",
        synthetic_note=f"{SYNTHETIC} {config.note}".rstrip(),
        command=command,
        hardware=hardware,
        date=day,
        seed=config.seed,
        results=results,
        goals=goals,
        baselines=baselines,
        curves=[Curve(folder.name, folder / "log.jsonl") for folder in runs],
        examples=[_example(places, record) for record in read_json(places.scores / "examples.json")],
        seconds={name: value for name, value in results["seconds"].items() if name != "wall"},
        budget=sum(config.seconds.values()),
    )


def _say(fact: Fact) -> str:
    """A fact in words."""
    if fact.kind == "relation" and fact.other is not None:
        return f"{fact.phrase.singular()}: {fact.side} of {fact.other.singular()}"
    if fact.kind == "place":
        return f"{fact.phrase.singular()}: {fact.place}"
    if fact.kind == "count":
        return f"{fact.count} x {fact.phrase.singular()}"
    return (
        f"{fact.phrase.singular()}: {fact.adjective}"
        if fact.kind == "attribute"
        else f"there is {fact.phrase.with_article()}"
    )


def _example(places: Places, record: Mapping[str, Any]) -> Example:
    """One picture with what was seen, said and answered."""
    folder = places.scenes / "heldout"
    image = int(record["image_id"])
    world = read_worlds(folder / "worlds.jsonl")[image]
    regions = {tuple(region["box"]): region for question in record["questions"] for region in question["regions"]}
    order = {box: place for place, box in enumerate(regions)}
    facts = parse_caption(record["caption"]) or []
    references = [c.text for c in read_captions(folder / "captions.json") if int(c.image_id) == image]
    notes = [
        RegionNote(tuple(region["box"]), " ".join([*region["attributes"], region["name"]]), region["score"])
        for region in regions.values()
    ]
    return Example(
        picture=Path(folder / "images" / record["picture"]),
        regions=notes,
        tags=", ".join(dict.fromkeys(note.label for note in notes)),
        caption=record["caption"],
        reference_captions=references,
        caption_facts=[(_say(fact), judge(fact, world)) for fact in facts],
        questions=[
            QuestionNote(
                question["question"],
                question["expected"],
                [(answer, probability) for answer, probability in question["answers"]],
                [(order[tuple(region["box"])], region["probability_drop"]) for region in question["regions"]],
            )
            for question in record["questions"]
        ],
    )
