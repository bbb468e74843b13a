"""The page in a browser: the system's Chromium, without a screen."""

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dimvl.app.exports import Exports
from dimvl.app.page import IMAGE_BYTES

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")
WAIT = 30_000  # milliseconds until something must be there, on a busy machine
PHONE = {"width": 360, "height": 740}
HOSTILE = "<img src=x onerror=\"document.title='run'\"> ${document.title='run'} {{value}} red"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def requested() -> list[str]:
    """Every URL that a page asks for."""
    return []


def open_page(browser: Any, url: str, requested: list[str], **options: Any) -> Any:
    page = browser.new_page(**options)
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.wait_for_selector(".dv-choose")
    return page


@pytest.fixture(scope="module")
def page(browser: Any, url: str, requested: list[str]) -> Any:
    return open_page(browser, url, requested, viewport={"width": 1280, "height": 900})


NAMES = (f"image-{number}.png" for number in count())


@pytest.fixture
def shown(page: Any, exports: Exports) -> Any:
    """The page with image 1 chosen as a file of a new name, and captioned."""
    return upload(page, next(NAMES), exports.files["1"].read_bytes())


def upload(page: Any, name: str, content: bytes | Path, done: str = "#dv-caption .dv-spent") -> Any:
    """Choose a file, given by its content or where it is, and wait for what comes of it; return the page."""
    given = content if isinstance(content, Path) else {"name": name, "mimeType": "image/png", "buffer": content}
    page.set_input_files(".dv-drop input", given)
    page.wait_for_function("name => document.querySelector('.dv-left').innerText.includes(name)", arg=name)
    page.wait_for_selector(done)
    return page


def card(page: Any, title: str) -> Any:
    return page.locator(".dv-card").filter(has=page.get_by_role("heading", name=title, exact=True))


def ask(page: Any, title: str, text: str, results: str) -> Any:
    """Type a text into a card and wait for its results."""
    own = card(page, title)
    own.get_by_role("textbox").fill(text)
    own.get_by_role("textbox").press("Enter")
    page.wait_for_selector(f"{results} .dv-spent")
    return own


def test_an_image_that_is_uploaded_shows_its_regions_and_a_caption(shown: Any, exports: Exports) -> None:
    image = exports.files["1"]
    regions = exports.predictors["all"].regions(image)
    assert shown.locator(".dv-region").count() == shown.locator(".dv-concepts li").count() == len(regions)
    words = exports.predictors["all"].caption(image).split()
    assert "".join(shown.locator(".dv-word").all_inner_texts()) == "".join(words)
    assert re.search(
        r"5 regions of image-\d+\.png · CPU, \d+ threads? · \d+ ms", shown.locator(".dv-left").inner_text()
    )


def test_pointing_at_a_region_and_reaching_it_by_keyboard_tell_class_attributes_and_score(shown: Any) -> None:
    region = shown.locator(".dv-region").last  # the smallest, on top
    said = region.get_attribute("aria-label")
    assert re.fullmatch(r"(small|large) (red|blue) (circle|square|star), score 0\.\d\d", said)
    name = said.replace(", score", "")
    region.hover()
    assert region.locator("span").is_visible() and region.inner_text() == name
    assert shown.locator(".dv-said").inner_text() == said and shown.locator(".dv-veil .dv-hot").count() == 1
    shown.mouse.move(1, 1)
    assert not region.locator("span").is_visible() and shown.locator(".dv-veil .dv-hot").count() == 0
    shown.locator(".dv-region").nth(3).focus()
    shown.keyboard.press("Tab")
    assert region.evaluate("element => element === document.activeElement")
    assert region.locator("span").is_visible() and shown.locator(".dv-said").inner_text() == said


def test_a_word_of_the_caption_shows_the_regions_it_rests_on_until_another_place_is_chosen(shown: Any) -> None:
    word = shown.locator(".dv-word").filter(has_text=re.compile(r"\w")).first
    word.evaluate("element => element.dataset.marks = '[[10, 20, 60, 90, 0.5]]'")
    word.click()
    shown.mouse.move(1, 1)
    frame = shown.locator(".dv-veil .dv-hot")
    assert frame.get_attribute("width") == "50" and frame.get_attribute("stroke-opacity") == "0.5"
    assert "rests on" in shown.locator(".dv-said").inner_text()
    shown.locator("h1").click()
    assert frame.count() == 0


def test_a_question_gets_the_best_answers_of_the_predictor(shown: Any, exports: Exports) -> None:
    question = "what is above the red star?"
    rows = ask(shown, "Ask", question, "#dv-answer").locator(".dv-row")
    best = exports.predictors["all"].answer(exports.files["1"], question).top
    assert rows.locator("span").all_inner_texts() == [text for text, _ in best]
    assert rows.locator("b").all_inner_texts() == [f"{100 * value:.1f}%" for _, value in best]


def test_a_text_is_matched_and_a_suggested_change_goes_on_from_there(shown: Any) -> None:
    own = ask(shown, "Match a text", "a red star", "#dv-match")
    changed = own.locator("button[data-text]:has(mark)").first
    text = changed.get_attribute("data-text")
    assert text != "a red star" and own.get_by_text("changes of one word").count() == 1
    changed.click()
    shown.wait_for_function("text => document.querySelector('#dv-match .dv-row span').innerText === text", arg=text)
    assert own.get_by_role("textbox").input_value() == text


def test_the_example_of_the_model_card_finds_the_region_of_a_phrase(shown: Any) -> None:
    own = card(shown, "Find a phrase")
    own.get_by_role("button", name="Try").click()
    shown.wait_for_selector("#dv-ground .dv-row")
    assert own.get_by_role("textbox").input_value() == "the red circle"
    assert own.locator(".dv-row").count() == 5


def test_a_search_finds_images_and_one_of_them_opens(shown: Any, exports: Exports) -> None:
    own = ask(shown, "Search", "two blue stars", "#dv-search")
    found = own.locator(".dv-thumb")
    assert sorted(found.nth(place).get_attribute("data-open") for place in range(4)) == ["1", "2", "3", "4"]
    own.locator("[data-open='4']").click()
    shown.wait_for_selector(".dv-frame img[alt='4']")
    assert exports.store is not None
    stored = exports.store.read(exports.store.position("4"))
    assert shown.locator(".dv-region").count() == len(stored)
    own.get_by_role("button", name="Search by the image").click()
    shown.wait_for_function("document.querySelectorAll('#dv-search .dv-thumb').length === 3")


@pytest.mark.parametrize("kind", ["torn", "text", "bomb", "large", "empty"])
def test_a_bad_image_gives_a_sentence_and_the_page_goes_on(
    shown: Any, exports: Exports, kind: str, tmp_path: Path
) -> None:
    whole, large = exports.files["2"].read_bytes(), tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(IMAGE_BYTES + 1)
    size = b"IHDR" + (65_000).to_bytes(4) * 2 + whole[24:29]
    content, expected = {
        "torn": (whole[: len(whole) // 2], "cannot be read .+; replace it or remove it"),
        "text": (b"no image", "is not an image of a known format .+; convert it to PNG or JPEG, or remove it"),
        "bomb": (whole[:12] + size + zlib.crc32(size).to_bytes(4) + whole[33:], "has more than 67,108,864 pixels; .+"),
        "large": (large, "has more than 20 MB; make it smaller"),
        "empty": (b"", "is not an image of a known format .+"),
    }[kind]
    upload(shown, f"{kind}.png", content, "[role=alert]")
    assert re.fullmatch(rf"{kind}\.png {expected}", shown.get_by_role("alert").inner_text())
    assert "Traceback" not in shown.locator("body").inner_text() and shown.locator(".dv-region").count() == 5
    ask(shown, "Ask", f"what about {kind}?", "#dv-answer")


def test_a_question_without_a_word_or_an_image_gives_a_sentence(browser: Any, url: str, requested: list[str]) -> None:
    page = open_page(browser, url, requested)
    own = card(page, "Ask")
    for text, expected in (("what?", "there is no image yet; choose one first"), (" ", "is empty")):
        own.get_by_role("textbox").fill(text)
        own.get_by_role("textbox").press("Enter")
        page.wait_for_selector("#dv-answer [role=alert]")
        assert expected in own.get_by_role("alert").inner_text() or text == " "
    page.close()


def test_texts_and_names_from_outside_are_shown_and_not_run(shown: Any, exports: Exports) -> None:
    upload(shown, "<b>x${1}{{value}}.png", exports.files["2"].read_bytes())
    own = ask(shown, "Match a text", HOSTILE, "#dv-match")
    assert own.locator(".dv-row span").first.inner_text() == HOSTILE
    assert shown.locator("img[src=x]").count() == 0 and shown.title() == "dimvl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways_and_legibly(
    browser: Any, url: str, requested: list[str], exports: Exports, scheme: str
) -> None:
    page = open_page(browser, url, requested, viewport=PHONE, color_scheme=scheme, has_touch=True)
    upload(page, next(NAMES), exports.files["1"].read_bytes())
    ask(page, "Ask", "what " + "is that " * 30, "#dv-answer")
    ask(page, "Match a text", "red " * 20, "#dv-match")
    ask(page, "Search", "star", "#dv-search")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.locator("#dv-answer .dv-row").first.tap()
    stage = page.locator(".dv-frame").bounding_box()
    assert stage["y"] >= 0 and stage["y"] + stage["height"] < PHONE["height"], "the image stays in view"
    assert "rests on" in page.locator(".dv-said").inner_text()
    for place in (".dv-caption button", ".dv-card h2", "#dv-answer .dv-row span", ".dv-hint"):
        contrast = page.evaluate(CONTRAST, place)
        assert contrast >= 4.5, f"{place}: {contrast}"  # WCAG 2.2, level AA
    page.close()


CONTRAST = """place => {
    const light = colour => {
        const canvas = document.createElement("canvas").getContext("2d");
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => part / 255);
        const [red, green, blue] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const element = document.querySelector(place);
    const ground = getComputedStyle(element.closest(".dv-card")).backgroundColor;
    const [low, high] = [light(ground), light(getComputedStyle(element).color)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


def test_pages_and_server_ask_no_other_host(url: str, requested: list[str], contacted: set[str], page: Any) -> None:
    assert len(requested) > 20 and not [one for one in requested if not one.startswith((url, "data:"))]
    assert not any("/file=" in one or "/upload" in one for one in requested)
    assert contacted <= {"127.0.0.1", "localhost"}, contacted
