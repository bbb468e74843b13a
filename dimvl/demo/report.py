"""The page and the table that the demo ends with: what was reached, beside what had to be, and what it looks like.

`write_report` makes one HTML file that needs nothing else: pictures and curves stand inside it. It knows nothing of the
data set but what it is given. Every text is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from rich.text import Text

from dimvl.demo.page import bar, cell, number, page, section, table, words
from dimvl.drawing import Box, draw_heat, draw_regions, line_colour, loss_svg, png_data_uri, read_losses
from dimvl.files import atomic_path
from dimvl.regions.images import load_image


@dataclass(frozen=True)
class Goal:
    """A score that was aimed at.

    Attributes:
        name: what is scored.
        value: what was reached.
        goal: what was aimed at.
        met: whether that is so.
        at_most: smaller is better.

    """

    name: str
    value: float
    goal: float
    met: bool
    at_most: bool = False


@dataclass(frozen=True)
class Baseline:
    """One row of the table that compares the model with baselines.

    Attributes:
        name: who answered.
        value: score, a fraction in [0, 1].
        note: what it was given and how it was trained.
        interval: half of the 95% interval around `value`, if known.
        ours: the model itself rather than a baseline.

    """

    name: str
    value: float
    note: str = ""
    interval: float | None = None
    ours: bool = False


@dataclass(frozen=True)
class Curve:
    """The losses of one training run: its name and its `log.jsonl`."""

    run: str
    log_path: Path


@dataclass(frozen=True)
class RegionNote:
    """One detected region: corners x1, y1, x2, y2 in pixels of the picture, its tag, its score in [0, 1]."""

    box: Box
    label: str
    score: float


@dataclass(frozen=True)
class QuestionNote:
    """A question about a picture and what the model answered.

    Attributes:
        question: as asked.
        expected: the right answer, empty if nobody knows it.
        answers: with their probabilities, best first.
        looked_at: index of a region of the example, and by how much the best answer's probability drops without it.

    """

    question: str
    expected: str
    answers: Sequence[tuple[str, float]]
    looked_at: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture, what was seen in it, said about it and answered.

    Attributes:
        picture: upright, or its file.
        regions: best first.
        tags: the visual-concept tags as the model got them.
        caption: as generated.
        reference_captions: as people, or the generator, wrote them.
        caption_facts: what the caption states, and whether that is true; empty where nobody checked.
        questions: asked about the picture.

    """

    picture: Image.Image | Path
    regions: Sequence[RegionNote]
    tags: str
    caption: str
    reference_captions: Sequence[str] = ()
    caption_facts: Sequence[tuple[str, bool]] = ()
    questions: Sequence[QuestionNote] = ()


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything on the page.

    Attributes:
        title: heading of the page.
        synthetic_note: what the data are, in a sentence or two; stands first.
        command: that makes all of this again.
        hardware: that it ran on.
        date: of the run, as text.
        seed: of everything.
        results: scores by group and name, as in `results.json`; nested groups are allowed.
        goals: in the order of the page.
        baselines: the model and what it is compared with, on the same questions.
        curves: one panel each.
        examples: in the order of the page.
        seconds: by stage, in order.
        budget: seconds that all stages may take together, if limited.

    """

    title: str
    synthetic_note: str
    command: str
    hardware: str
    date: str
    seed: int
    results: Mapping[str, Any]
    goals: Sequence[Goal] = ()
    baselines: Sequence[Baseline] = ()
    curves: Sequence[Curve] = ()
    examples: Sequence[Example] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None


def write_report(path: Path, report: DemoReport) -> None:
    """Write the page, whole or not at all; the same report gives the same bytes.

    Raises:
        UserError: a log or a picture cannot be read, or the page cannot be written.

    """
    sections = [
        _head(report),
        section("Goals", _goal_table(report.goals)) if report.goals else "",
        section("Beside the baselines", _baseline_table(report.baselines)) if report.baselines else "",
        section("All scores", f'<div class="columns">{_score_cards(report.results)}</div>'),
        section("Losses", _curves(report.curves)) if report.curves else "",
        section("Examples", _LEGEND + "".join(map(_example, report.examples, range(1, len(report.examples) + 1))))
        if report.examples
        else "",
        section("Time by stage", _time_table(report.seconds, report.budget)) if report.seconds else "",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(page(report.title, "".join(sections)), encoding="utf-8")


def summary_table(results: Mapping[str, Any], goals: Sequence[Goal]) -> Table:
    """The scores for a terminal: goals first, then `results` without seconds and details, which are on the page."""
    result = Table(title="Scores", title_justify="left")
    result.add_column("score")
    result.add_column("value", justify="right")
    result.add_column("goal", justify="right")
    result.add_column("")
    for goal in goals:
        verdict = Text("met", "green") if goal.met else Text("NOT MET", "bold red")
        result.add_row(Text(goal.name), number(goal.value), _bound(goal), verdict)
    for group, values in results.items():
        if group == "seconds":
            continue
        result.add_section()
        if isinstance(values, Mapping):
            values = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
        for name, value in _leaves(group, values):
            result.add_row(Text(name), Text(number(value)))
    return result


def _head(report: DemoReport) -> str:
    facts = {"Command": f"<code>{escape(report.command)}</code>", "Hardware": escape(report.hardware)}
    facts |= {"Date": escape(report.date), "Seed": str(report.seed)}
    for name, value in report.results.items():
        if name != "seed" and not isinstance(value, Mapping):
            facts[words(name)] = escape(number(value))
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    met = sum(goal.met for goal in report.goals)
    verdict = f'<p class="verdict"><b>{met} of {len(report.goals)}</b> goals met.</p>' if report.goals else ""
    return (
        f'<header><h1>{escape(report.title)}</h1><p class="note">{escape(report.synthetic_note)}</p>'
        f'{verdict}<dl class="facts">{listed}</dl></header>\n'
    )


def _goal_table(goals: Sequence[Goal]) -> str:
    rows = []
    for goal in goals:
        top = 1.0 if max(goal.value, goal.goal) <= 1 else 1.25 * max(goal.value, goal.goal)
        verdict = '<span class="met">✓ met</span>' if goal.met else '<span class="unmet">✗ not met</span>'
        rows.append(
            f'<tr><th scope="row">{escape(goal.name)}</th><td class="number">{number(goal.value)}</td>'
            f'<td class="wide">{bar(goal.value / top, mark=goal.goal / top, kind="" if goal.met else "short")}</td>'
            f'<td class="number">{_bound(goal)}</td><td>{verdict}</td></tr>'
        )
    return table(("Score", "Reached", "", "Goal", "Result"), rows)


def _baseline_table(baselines: Sequence[Baseline]) -> str:
    rows = []
    for row in baselines:
        interval = "" if row.interval is None else f" <small>± {number(row.interval)}</small>"
        rows.append(
            f'<tr{" class=ours" if row.ours else ""}><th scope="row">{escape(row.name)}</th>'
            f'<td class="number">{number(row.value)}{interval}</td>'
            f'<td class="wide">{bar(row.value, kind="" if row.ours else "other")}</td>'
            f'<td class="remark">{escape(row.note)}</td></tr>'
        )
    return table(("Who", "Score", "", "Given"), rows)


def _score_cards(results: Mapping[str, Any]) -> str:
    """One card per group of results; single values and the seconds stand elsewhere on the page."""
    return "".join(
        f'<div class="card"><h3>{escape(words(group))}</h3>{_score_tables(values)}</div>'
        for group, values in results.items()
        if isinstance(values, Mapping) and group != "seconds"
    )


def _score_tables(values: Mapping[str, Any], caption: str = "") -> str:
    """Single values as one table, groups of single values as one table with a column each, deeper ones below."""
    single = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    flat = {name: value for name, value in groups.items() if not any(isinstance(v, Mapping) for v in value.values())}
    parts = []
    if single:
        rows = [f'<tr><th scope="row">{escape(words(name))}</th>{cell(value)}</tr>' for name, value in single.items()]
        parts.append(table(("Score", "Value"), rows, caption))
    if flat:
        names = dict.fromkeys(name for group in flat.values() for name in group)
        rows = [
            f'<tr><th scope="row">{escape(words(name))}</th>'
            + "".join(cell(group[name]) if name in group else "<td>&ndash;</td>" for group in flat.values())
            + "</tr>"
            for name in names
        ]
        parts.append(table((caption or "Score", *(words(name) for name in flat)), rows))
    for name, group in groups.items():
        if name not in flat:
            parts.append(_score_tables(group, words(name)))
    return "".join(parts)


def _curves(curves: Sequence[Curve]) -> str:
    panels = []
    for curve in curves:
        series = read_losses(curve.log_path)
        ends = [f"{words(name)} {smooth[0]:.3g} → {smooth[-1]:.3g}" for name, _, _, smooth in series]
        keys = "".join(
            f'<li><span class="key" style="background:{line_colour(index)}"></span>{escape(end)}</li>'
            for index, end in enumerate(ends)
        )
        label = escape(f"Losses of {curve.run}: {'; '.join(ends)}")
        picture = loss_svg(series, label) if series else "<p>Nothing was logged.</p>"
        panels.append(
            f'<figure class="card"><figcaption><h3>{escape(curve.run)}</h3></figcaption>{picture}'
            f'<ul class="keys">{keys}</ul></figure>'
        )
    remark = "Mean per target on a logarithmic axis: running mean, and pale behind it the values as logged."
    return f'<p class="remark">{remark}</p><div class="grid">{"".join(panels)}</div>'


_OPEN_ITEMS = 8
_LEGEND = (
    '<p class="remark">Boxes are the detector\'s. What an answer looked at is the drop of its probability when a region'
    " and its tags are removed: the clearer a box and the stronger its frame, the larger the share that is lost.</p>"
)


def _example(example: Example, position: int) -> str:
    picture = example.picture if isinstance(example.picture, Image.Image) else load_image(example.picture)
    boxes = [region.box for region in example.regions]
    labels = [region.label for region in example.regions]
    drawn = png_data_uri(draw_regions(picture, boxes, labels))
    listed = [f"{escape(region.label)} <small>{region.score:.2f}</small>" for region in example.regions]
    seen = escape(f"Picture {position} with {len(boxes)} labelled regions: {', '.join(labels) or 'none'}")
    questions = "".join(_question(question, picture, example.regions) for question in example.questions)
    return (
        f'<article class="card example"><h3>Picture {position}</h3><img src="{drawn}" alt="{seen}">'
        f'<div class="said"><p class="caption">{escape(example.caption)}</p>{_facts(example.caption_facts)}'
        f'<p class="remark"><b>Tags</b> {escape(example.tags) or "none"}</p>'
        f"{_details('Reference captions', 'ul', [escape(caption) for caption in example.reference_captions])}"
        f"{_details('Regions and their scores', 'ol', listed)}</div>"
        f'<div class="asked">{questions}</div></article>\n'
    )


def _facts(facts: Sequence[tuple[str, bool]]) -> str:
    marked = "".join(
        f'<li class="met">✓ {escape(text)}</li>' if true else f'<li class="unmet">✗ {escape(text)} (false)</li>'
        for text, true in facts
    )
    return f'<ul class="chips" aria-label="Facts that the caption states">{marked}</ul>' if facts else ""


def _details(summary: str, kind: str, items: Sequence[str]) -> str:
    """A list that stands open if it is short enough to read."""
    shown = " open" if len(items) <= _OPEN_ITEMS else ""
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<details{shown}><summary>{summary}</summary><{kind}>{listed}</{kind}></details>" if items else ""


def _question(note: QuestionNote, picture: Image.Image, regions: Sequence[RegionNote]) -> str:
    best, probability = note.answers[0] if note.answers else ("", 0.0)
    drops = sorted(note.looked_at, key=lambda pair: -pair[1])
    # The share of the probability that is lost; its root, for an eye that would not see a tenth.
    heat = {index: min(1.0, max(0.0, drop / max(probability, 1e-6))) ** 0.5 for index, drop in drops}
    told = [escape(f"{_change(-drop)} without {index + 1} {regions[index].label}") for index, drop in drops[:3]]
    shown = png_data_uri(draw_heat(picture, [region.box for region in regions], heat)) if drops else ""
    image = f'<img src="{shown}" alt="What the answer looked at: {"; ".join(told)}">' if drops else ""
    verdict = ""
    if note.expected:
        right = best.strip().lower() == note.expected.strip().lower()
        wrong = f'<span class="unmet">✗ expected {escape(note.expected)}</span>'
        verdict = '<span class="met">✓ right</span>' if right else wrong
    bars = "".join(
        f'<tr><th scope="row">{escape(answer)}</th><td class="wide">{bar(value)}</td>'
        f'<td class="number">{value:.2f}</td></tr>'
        for answer, value in note.answers
    )
    return (
        f'<div class="question">{image}<div><p><b>{escape(note.question)}</b> {verdict}</p>'
        f'<table class="answers"><tbody>{bars}</tbody></table><p class="remark">{"<br>".join(told)}</p></div></div>'
    )


def _time_table(seconds: Mapping[str, float], budget: float | None) -> str:
    total, longest = sum(seconds.values()), max(max(seconds.values()), 1e-9)
    rows = [
        f'<tr><th scope="row">{escape(words(stage))}</th><td class="number">{value:.1f} s</td>'
        f'<td class="wide">{bar(value / longest)}</td></tr>'
        for stage, value in seconds.items()
    ]
    allowed = "" if budget is None else f" <small>of {budget:.0f} s allowed</small>"
    rows.append(
        f'<tr class="ours"><th scope="row">Total</th><td class="number">{total:.1f} s{allowed}</td>'
        f'<td class="wide"></td></tr>'
    )
    return table(("Stage", "Seconds", ""), rows)


def _change(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")  # a true minus sign


def _bound(goal: Goal) -> str:
    return f"{'≤' if goal.at_most else '≥'} {number(goal.goal)}"


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """Flatten nested groups: the names joined by spaces, and the value."""
    if not isinstance(value, Mapping):
        return [(words(name), value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(f"{name} {key}", inner)]
