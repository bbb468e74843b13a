"""What notebooks show of regions and results: safe, small, and with the image where it is known."""

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.data.answers import Answer
from dimvl.explanation import Explanation, Grounding, RegionDrop
from dimvl.predictor import Predictor
from dimvl.regions.records import Origin, Regions
from dimvl.regions.store import RegionStore
from tests.exports import all_abilities, make_detector, make_image, make_trained
from tests.factories import make_extractor, make_regions, make_store

HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "'><img src=x onerror=alert(1)>",
    "\x1b[2J\u202e&amp;",
)
TAGS = {"table", "tr", "td", "th", "p", "b", "div", "span", "img"}


class Shown(HTMLParser):
    """The tags, attributes and text of a piece of HTML that is well formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def show(thing: object) -> Shown:
    shown = Shown(thing._repr_html_())  # type: ignore[attr-defined]
    assert set(shown.tags) <= TAGS and {name for name, _ in shown.attributes} <= {"style", "title", "src", "alt"}
    return shown


def hostile_regions(image: object) -> Regions:
    extractor = replace(make_extractor(), classes=HOSTILE[:3], attributes=HOSTILE)
    regions = make_regions(0, "<b>".join(HOSTILE))
    return replace(regions, origin=Origin(extractor, image))


def test_hostile_names_are_text() -> None:
    regions = hostile_regions(make_image(0, 100, 80))
    drops = [RegionDrop((0, 0, 50, 40), name, (name,), 0.5, 0.1) for name in HOSTILE]
    for thing in (
        regions,
        Answer(HOSTILE[0], 0.5, [(name, 0.5) for name in HOSTILE]),
        *(Explanation(Answer(name, 0.5, []), 0.5, drops, images=(regions,)) for name in HOSTILE),
        *(Explanation(name, -3.0, drops, logarithms=True) for name in HOSTILE),
        Grounding(drops, [0.25] * 4, 0.0, (regions,)),
    ):
        shown = show(thing)
        assert any("alert(1)" in text for text in shown.text)
        assert not any("\x1b" in text or "\u202e" in text for text in shown.text)


def test_regions_show_their_image_where_it_is_known_and_a_table_in_any_case(tmp_path: Path) -> None:
    image = make_image(0, 100, 80)
    image.save(tmp_path / "image.png")
    content = io.BytesIO()
    image.save(content, "PNG")
    regions = make_regions(0)
    for source in (image, tmp_path / "image.png", str(tmp_path / "image.png"), content.getvalue(), np.asarray(image)):
        shown = show(replace(regions, origin=Origin(make_extractor(), source)))
        assert shown.tags.count("img") == 1 and shown.tags.count("div") == 1 + len(regions)
    make_image(0, 40, 40).save(tmp_path / "image.png")  # another image by now
    for source in (None, tmp_path / "image.png", tmp_path / "missing.png"):
        shown = show(replace(regions, origin=Origin(make_extractor(), source)))
        assert "img" not in shown.tags and shown.tags.count("tr") == 1 + len(regions)
    assert any("class 2" in text for text in show(regions).text), "without names, numbers"


def test_what_is_shown_is_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), dtype=np.uint8))
    many = replace(make_regions(0, "i" * 10_000, 300), width=3000, height=2000, origin=Origin(make_extractor(), noise))
    html = many._repr_html_()
    assert len(html) < 200_000 and "and 280 more" in html
    assert html.count("<tr>") == 21 and html.count("<div title") == 20
    assert len(Answer("a" * 10**6, 0.5, [("a" * 10**6, 0.5)] * 500)._repr_html_()) < 10_000
    assert noise.size == (3000, 2000), "the user's own image stays as it is"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder, detector = tmp_path_factory.mktemp("detector"), make_detector()
    detector.save(folder)
    return Predictor(make_trained(all_abilities(detector.extractor, grounds=True)), folder)


def test_what_a_predictor_returns_shows_the_image_that_it_was_given(predictor: Predictor, tmp_path: Path) -> None:
    image = make_image(1)
    image.save(tmp_path / "1.png")
    regions = predictor.regions(tmp_path / "1.png")
    explained = predictor.explain(tmp_path / "1.png", "is the star above a circle")
    pair = predictor.explain(regions, "is the star above a circle")
    for thing in (regions, predictor.regions(image), explained, pair, predictor.ground(image, "a star")):
        shown = show(thing)
        assert shown.tags.count("img") == 1 and shown.tags.count("div") == 1 + len(regions)
        assert any(name in text for text in shown.text for name in ("circle", "square", "star"))
    with (tmp_path / "1.png").open("rb") as file:
        read = predictor.regions(file)
        file.seek(0)
        assert "img" not in show(read).tags and file.tell() == 0, "an open file is not read again"
    assert "img" not in show(replace(regions, origin=None)).tags
    assert "table" in show(predictor.answer(image, "is the star above a circle")).tags


def test_regions_of_a_store_show_their_names(tmp_path: Path) -> None:
    shown = show(RegionStore(make_store(tmp_path / "store")).read(0))
    assert any(name in text for text in shown.text for name in make_extractor().classes)
