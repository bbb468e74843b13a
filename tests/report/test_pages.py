"""The page of a run shows what was logged; every page keeps its content in sight at any width, with enough contrast."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dimvl.report
from dimvl.demo.report import write_report
from dimvl.errors import UserError
from dimvl.report.run import write_run_report
from tests.demo.test_report import HOSTILE, make_report
from tests.exports import make_trained, write_run

CSS = (Path(dimvl.report.__file__).parent / "base.html.jinja").read_text(encoding="utf-8")


def make_run(folder: Path, steps: int = 4, text: str = "a red star", parts: int = 1) -> Path:
    """A run with validations after every second of its steps so far."""
    run, lines, predictions = write_run(folder / "run", make_trained()), [], []
    for step in range(1, steps + 1):
        report = {"step": step, "steps": 50, "losses": {"words": 8.0 / step}, "counts": {"words": 3}}
        lines.append(report | {"seconds_left": 90.0 * step, "rows_per_second": 1234.5, "learning_rate": 2.5e-5})
        if step % 2 == 0:
            scores = {f"part {number}": 0.25 for number in range(parts)}
            best = {"best": 0.5, "best_step": 2}
            lines.append({"step": step, "validation": 1.0 / step, **best, "validation_parts": scores})
            sample = {
                "image_id": "17",
                "caption": f"{text} {step}",
                "references": [text, "blue"],
                "top": [["yes", 0.75]],
            }
            predictions.append({"step": step, "predictions": [sample]})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions))
    return run


def page_of(run: Path) -> str:
    return write_run_report(run).read_text(encoding="utf-8")


def test_the_page_of_a_run_has_its_curves_scores_and_newest_predictions_while_it_trains(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # being written
    page = page_of(run)
    assert "4 of 50 steps logged, about 0:06:00 left" in page
    assert re.findall(r'<svg role="img" aria-label="(.*?)"', page) == [
        "Validation score: Score 0.5 → 0.25",
        "Losses: Words 8 → 2",
    ]
    assert "Best score <b>0.500</b> after step 2; newest 0.250 after" in page and "2 (best)" in page
    assert ">1234<" in page and ">2.5e-05<" in page and "Part 0" in page
    assert "Predictions after step 4" in page and "a red star 4" in page and "a red star 2" not in page
    assert "yes 0.75" in page and "a red star<br>blue" in page


def test_of_many_validations_the_newest_and_the_best_are_in_the_table(tmp_path: Path) -> None:
    rows = re.findall(r'<th scope="row">(\d+)', page_of(make_run(tmp_path, steps=50)))
    assert rows == [str(step) for step in (*range(50, 10, -2), 2)]


def test_a_run_without_a_log_has_a_page_and_a_folder_without_a_run_has_none(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", make_trained()))
    assert "Nothing has been logged yet" in page and "<h2>" not in page
    with pytest.raises(UserError, match=r"is not a run of dimvl"):
        write_run_report(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*Is a directory"):
        write_run_report(tmp_path / "run", tmp_path)


class Places(HTMLParser):
    """The elements around each table, and around each chart."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[str]] = []
        self.charts: list[list[str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = f"{tag}.{dict(attributes).get('class')}"
        if tag in ("table", "svg"):
            (self.tables if tag == "table" else self.charts).append([*self.open, named])
        if tag not in ("meta", "br", "img", "path", "use", "rect", "circle"):
            self.open.append(named)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1].startswith(f"{tag}."):
            self.open.pop()


@pytest.mark.parametrize("kind", ["demo", "run"])
def test_every_table_scrolls_in_its_place_with_a_cue_and_every_text_is_escaped(tmp_path: Path, kind: str) -> None:
    if kind == "run":
        page = page_of(make_run(tmp_path, text=HOSTILE, parts=6))
    else:
        write_report(tmp_path / "demo.html", make_report(tmp_path, HOSTILE))
        page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    places = Places()
    places.feed(page)
    assert len(places.tables) >= 3 and len(places.charts) >= 1
    for around in places.tables:
        assert around[-2] == "div.scroll" or around[-1] == "table.answers", around  # the texts of these break anywhere
    assert all("figure.card" in around for around in places.charts)
    assert "<script" not in page and HOSTILE in unescape(page)


def rules(selector: str) -> str:
    return " ".join(re.findall(rf"(?m)^\s*{re.escape(selector)} {{(.*?)}}", CSS, re.DOTALL))


def test_what_scrolls_shows_on_which_side_there_is_more() -> None:
    assert "overflow-x: auto" in rules(".scroll")
    gradient = r"linear-gradient\(to (\w+), var\(--%s, transparent\) (\w+) .* %s"
    shadows = re.findall(gradient % (r"shade\)", "scroll"), rules(".scroll"))
    assert shadows == [("right", "left"), ("left", "right")]
    covers = re.findall(
        r"linear-gradient\(to (\w+), var\(--ground\) 40%, transparent\) (\w+) .* local", rules(".scroll")
    )
    assert covers == shadows  # they move with the content, and so hide the shadow where it ends
    assert "overflow-x" not in rules(".card") and "width: 100%" in rules("figure svg")


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """As the Web Content Accessibility Guidelines define it: 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_bars_have_a_contrast_of_3_and_texts_of_4_and_a_half_in_both_schemes() -> None:
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root {(.*?)}", CSS, re.DOTALL)]
    light, dark, *_ = schemes
    for colours in (light, dark):
        for bar in ("accent", "other", "unmet"):
            assert all(contrast(colours[bar], colours[ground]) >= 3 for ground in ("line", "paper", "card")), bar
        for text in ("ink", "quiet"):
            assert all(contrast(colours[text], colours[ground]) >= 4.5 for ground in ("paper", "card")), text
