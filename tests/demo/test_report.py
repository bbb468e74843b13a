"""The demo's page and table: complete without other files, every score, missed goals marked, every text escaped."""

import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dimvl.demo.report import Baseline, Example, Goal, Question, Region, Report, summary_table, write_report
from dimvl.errors import UserError
from dimvl.report.curves import read_losses
from dimvl.study.figure import Point

HOSTILE = "<script>alert('x')</script> & \"quoted\""
RESULTS = {
    "vqa": {"heldout": 0.8123, "question_only": 0.4567, "by_kind": {"heldout": {"count": 0.7012, "colour": 0.9034}}},
    "matching": {"random": 0.9781},
    "detector": {"heldout": {"ap50": 0.9123}, "compositional": {"ap50": 0.8901}},
    "deep": {"first": {"second": {"third": 0.1357}}},
    "labels": {"3000": {"gain": 0.1742, "interval": [0.0912345, 0.2534567]}},
    "seconds": {"pretraining": 61.4},
    "peak_memory_gb": 2.314,
    "seed": 7,
}
GOALS = [Goal("VQA", 0.8123, 0.8), Goal("relations", 0.5111, 0.77), Goal("minutes", 11.4, 12, at_most=True)]


def make_log(path: Path, counts: tuple[int, ...] = (4, 4, 4)) -> Path:
    lines = [
        {"step": step, "losses": {"words": 3.0 / step, "objects/kl": 1.0}, "counts": {"words": count, "objects": 5}}
        for step, count in enumerate(counts, start=1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_report(folder: Path, text: str = "plain words") -> Report:
    Image.new("RGB", (60, 40), "white").save(folder / "image.png")
    return Report(
        title=text,
        note=text,
        command=text,
        hardware=text,
        date=text,
        results={**RESULTS, "comment": {text: text}},
        goals=[*GOALS, Goal(text, 0.9, 0.8)],
        baselines=[Baseline(text, 0.4567, text, 0.0123)],
        labels={"pretrained": [Point(300, 0.52, 0.5, 0.55), Point(3000, 0.72, 0.7, 0.75)]},
        logs={text: make_log(folder / "log.jsonl")},
        examples=[
            Example(
                image=folder / "image.png",
                regions=[Region((10, 5, 30, 25), text, 0.9), Region((40, 20, 50, 35), text, 0.8)],
                caption=text,
                references=[text],
                facts=[(text, True), (text, False)],
                questions=[Question(text, text + "?", [(text, 0.8), ("no", 0.1)], [(0, 0.3), (1, -0.1)])],
            )
        ],
        seconds={"pretraining": 61.4},
        budget=720,
    )


def printed(results: dict, goals: list[Goal]) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(summary_table(results, goals))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", make_report(folder))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file(page):
    assert "http:" not in page and "https:" not in page
    assert "<link" not in page and "<script" not in page and "@import" not in page
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    references = re.findall(r'href="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert all(reference.startswith("#") for reference in references)


def test_every_score_is_on_the_page_and_all_but_nested_ones_are_in_the_table(page):
    shown = printed(RESULTS, GOALS)
    for score in ("0.812", "0.457", "0.701", "0.903", "0.978", "0.912", "0.890", "0.136", "2.31"):
        assert f">{score}<" in page
    for score in ("0.812", "0.457", "2.31"):
        assert score in shown
    assert "61.4 s" in page and ">0.091 to 0.253<" in page
    assert "Accuracy by labelled questions: pretrained 0.520 at 300, 0.720 at 3000" in page


def test_an_unmet_goal_is_marked_in_words_and_a_met_one_is_not(page):
    goals = page.partition("<h2>Goals</h2>")[2].partition("</section>")[0]
    rows = dict(row.split("</th>") for row in goals.split('<th scope="row">')[1:])
    assert "not met" in rows["relations"] and "0.511" in rows["relations"] and "≥ 0.770" in rows["relations"]
    assert "not met" not in rows["VQA"] and "met" in rows["VQA"]
    assert "≤ 12" in rows["minutes"]
    assert "<b>3 of 4</b> goals met" in page
    shown = printed(RESULTS, GOALS)
    assert [line.count("NOT MET") for line in shown.splitlines() if "relations" in line] == [1]


def test_every_text_is_escaped(tmp_path):
    write_report(tmp_path / "report.html", make_report(tmp_path, HOSTILE))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and '"quoted"' not in page
    times = unescape(page).count(HOSTILE)
    assert times >= 20, times


def test_rich_markup_in_a_name_is_shown_as_it_is():
    shown = printed({"[red]": 0.5}, [Goal("[bold]x[/]", 0.5, 0.4)])
    assert "[red]" in shown and "[bold]x[/]" in shown


def test_the_same_report_gives_the_same_bytes(tmp_path, page):
    write_report(tmp_path / "report.html", make_report(tmp_path))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_a_curve_omits_the_reports_in_which_its_objective_had_no_target(tmp_path):
    words, objects = read_losses(make_log(tmp_path / "log.jsonl", counts=(4, 0, 4)))
    assert words.name == "words" and words.steps.tolist() == [1, 3]
    np.testing.assert_allclose(words.values, [3.0, 1.0])
    assert objects.name == "objects/kl" and objects.steps.tolist() == [1, 2, 3]


def test_a_missing_or_malformed_log_is_one_clear_sentence(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_losses(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl is not the log of a run"):
        read_losses(tmp_path / "bad.jsonl")


def test_a_report_with_scores_only_has_no_empty_sections(tmp_path):
    bare = replace(
        make_report(tmp_path), goals=(), baselines=(), labels={}, logs={}, examples=(), seconds={}, budget=None
    )
    write_report(tmp_path / "report.html", bare)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["All scores"]


def test_every_image_and_chart_has_a_text_alternative(page):
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 2 and all(re.search(r'alt="[^"]+"', image) for image in images)
    charts = re.findall(r"<svg [^>]*>", page)
    assert len(charts) == 2 and "pretrained 0.520 at 300, 0.720 at 3000" in charts[0] and "Words 3 → 1" in charts[1]
