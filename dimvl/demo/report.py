"""The page and the table that the demo ends with: scores beside their goals, baselines, losses, examples.

`write_report` fills `report.html.jinja`; images and curves are inside the page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from rich.text import Text

from dimvl.drawing import Box, draw_heat, draw_regions, heat_of, png_data_uri
from dimvl.regions.images import load_image
from dimvl.report.curves import inline_svg, read_losses
from dimvl.report.page import drawn_curves, number, words, write_page
from dimvl.study.figure import Point, study_svg


@dataclass(frozen=True)
class Goal:
    """A score and the value that it should reach: at least `goal`, or at most `goal` where smaller is better."""

    name: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the score reaches its goal."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    @property
    def bound(self) -> str:
        """The goal with its sign."""
        return f"{'≤' if self.at_most else '≥'} {number(self.goal)}"


@dataclass(frozen=True)
class Baseline:
    """A row of the comparison: score in [0, 1], half of its 95% interval if known; `ours` is the model itself."""

    name: str
    value: float
    note: str = ""
    interval: float | None = None
    ours: bool = False


@dataclass(frozen=True)
class Region:
    """A detected region: corners x1, y1, x2, y2 in pixels of the image, its tag, its score in [0, 1]."""

    box: Box
    label: str
    score: float


@dataclass(frozen=True)
class Question:
    """A question about an image and the model's answers with their probabilities, best first."""

    text: str
    expected: str  # the right answer, empty if unknown
    answers: Sequence[tuple[str, float]]
    drops: Sequence[tuple[int, float]] = ()  # index of a region, drop of the best answer's probability without it

    @property
    def right(self) -> bool:
        """Whether the best answer is the expected one."""
        return bool(self.answers) and self.answers[0][0].strip().lower() == self.expected.strip().lower()


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its regions, best first, a generated caption, reference captions and questions."""

    image: Path
    regions: Sequence[Region]
    caption: str
    references: Sequence[str] = ()
    facts: Sequence[tuple[str, bool]] = ()  # what the generated caption states, and whether it is true
    questions: Sequence[Question] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page."""

    title: str
    note: str  # what the data are
    command: str  # the command that made the report
    hardware: str
    date: str
    results: Mapping[str, Any]  # scores by group and name, as in `results.json`; groups may be nested
    goals: Sequence[Goal] = ()
    baselines: Sequence[Baseline] = ()
    labels: Mapping[str, Sequence[Point]] = field(default_factory=dict)  # accuracy by number of labelled questions
    logs: Mapping[str, Path] = field(default_factory=dict)  # `log.jsonl` by name of the run
    examples: Sequence[Example] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage
    budget: float | None = None  # seconds expected of all stages together


def write_report(path: Path, report: Report) -> None:
    """Write the page, whole or not at all; the same report gives the same bytes.

    Raises:
        UserError: a log or an image cannot be read, or the page cannot be written.

    """
    groups = {name: values for name, values in report.results.items() if isinstance(values, Mapping)}
    groups.pop("seconds", None)  # they have their own section
    write_page(
        path,
        Path(__file__).with_name("report.html.jinja"),
        title=report.title,
        report=report,
        score_tables={name: list(_tables(values)) for name, values in groups.items()},
        labels=inline_svg(study_svg(report.labels, "labelled questions", "VQA accuracy"), _in_words(report.labels))
        if report.labels
        else "",
        curves=[drawn_curves(name, f"Losses of {name}", read_losses(log)) for name, log in report.logs.items()],
        examples=[_drawn(example) for example in report.examples],
    )


def summary_table(results: Mapping[str, Any], goals: Sequence[Goal]) -> Table:
    """The scores for a terminal: goals first, then `results` without seconds and nested groups, which the page has."""
    result = Table("score", title="Scores", title_justify="left")
    result.add_column("value", justify="right")
    result.add_column("goal", justify="right")
    result.add_column("")
    for goal in goals:
        verdict = Text("met", "green") if goal.met else Text("NOT MET", "bold red")
        result.add_row(Text(goal.name), number(goal.value), goal.bound, verdict)
    for group, values in results.items():
        if group == "seconds":
            continue
        result.add_section()
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            if not isinstance(value, Mapping):
                result.add_row(Text(words(f"{group} {name}".strip())), Text(number(value)))
    return result


def _tables(values: Mapping[str, Any], title: str = "") -> Iterator[dict[str, Any]]:
    """Tables of a group of scores: single values, then groups side by side, then each deeper group on its own."""
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    single = [(name, [value]) for name, value in values.items() if name not in groups]
    if single:
        yield {"title": title, "columns": ["Score", "Value"], "rows": single}
    flat = {name: group for name, group in groups.items() if not any(isinstance(v, Mapping) for v in group.values())}
    if flat:
        names = dict.fromkeys(name for group in flat.values() for name in group)
        rows = [(name, [group.get(name, "\u2013") for group in flat.values()]) for name in names]
        yield {"title": "", "columns": [title or "Score", *map(words, flat)], "rows": rows}
    for name, group in groups.items():
        if name not in flat:
            yield from _tables(group, words(name))


def _in_words(lines: Mapping[str, Sequence[Point]]) -> str:
    """Say what a figure shows."""
    values = {name: ", ".join(f"{point.mean:.3f} at {point.x}" for point in points) for name, points in lines.items()}
    return "Accuracy by labelled questions: " + "; ".join(f"{name} {text}" for name, text in values.items())


def _drawn(example: Example) -> dict[str, Any]:
    """An example and its images: all regions, and for each question the regions that its answer depends on."""
    image = load_image(example.image)
    boxes = [region.box for region in example.regions]
    labels = [region.label for region in example.regions]
    return {
        "example": example,
        "labels": labels,
        "image": png_data_uri(draw_regions(image, boxes, labels)),
        "questions": [_drawn_question(question, image, boxes, labels) for question in example.questions],
    }


def _drawn_question(
    question: Question, image: Image.Image, boxes: Sequence[Box], labels: Sequence[str]
) -> dict[str, Any]:
    probability = question.answers[0][1] if question.answers else 0.0
    drops = sorted(question.drops, key=lambda pair: -pair[1])
    heat = {index: heat_of(drop, probability) for index, drop in drops}
    return {
        "question": question,
        "image": png_data_uri(draw_heat(image, boxes, heat)) if drops else "",
        "drops": [f"{_signed(-drop)} without {index + 1} {labels[index]}" for index, drop in drops[:3]],
    }


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")  # a true minus sign
