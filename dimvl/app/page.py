"""The page as Gradio components: an image, and a card for each thing that the exports can do with it."""

import base64
import binascii
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dimvl.app import markup
from dimvl.app.exports import VERBS, Exports, Picture
from dimvl.app.results import answers, caption, ground, match
from dimvl.errors import UserError
from dimvl.fields import LONGEST_TEXT
from dimvl.predictor import Predictor
from dimvl.regions.records import Regions
from dimvl.showing import counted, visible
from dimvl.tasks import abilities_of

IMAGE_BYTES = 20 * 2**20
"""The largest image file that the page takes."""
WAITING = 32
"""Requests that wait for their turn; more are told that the page is busy."""
CARDS = {
    "caption": ("Caption", "", "Point at a word, or tap it, to see the regions it rests on."),
    "answer": ("Ask", "Question", "Each answer shows the regions it rests on."),
    "match": ("Match a text", "Text", "Does it fit, and would another word fit better?"),
    "ground": ("Find a phrase", "Phrase", "The regions that a phrase refers to."),
}
"""Of each verb: title, label and hint."""
CHOSEN = """element.addEventListener("click", event => {
    const button = event.target.closest("[data-open], [data-text]");
    if (button) trigger("select", {...button.dataset});
});"""
"""Tells the server which image or text in a piece of HTML was chosen."""


def build_page(exports: Exports) -> Any:
    """Return the page as `gradio.Blocks`."""
    # No word to its makers, and no statistics of its own after each event
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**31)}
    import gradio as gr

    html = partial(gr.HTML, apply_default_css=False, js_on_load=CHOSEN)
    with gr.Blocks(title="dimvl", analytics_enabled=False, fill_width=True) as page:
        picture = gr.State(None, time_to_live=3600)
        html(markup.header(exports))
        with gr.Row(elem_classes="dv-columns"):
            with gr.Column(scale=6, min_width=300, elem_classes="dv-left"):
                script = _beside("page.js").replace("IMAGE_BYTES", str(IMAGE_BYTES))
                drop = html(markup.drop(map(exports.thumbnail, exports.examples)), js_on_load=CHOSEN + script)
                stage, said = html(markup.stage(None), elem_classes="dv-sticky"), html()
            with gr.Column(scale=5, min_width=300):
                cards = {verb: _card(html, exports, verb, picture) for verb in VERBS if exports.able(verb)}
                hits = _search(html, exports, picture) if exports.searcher else None
        results = [result for result, *_ in cards.values()]

        def show(event: gr.EventData) -> dict[Any, Any]:
            try:
                opened, seconds = _timed(partial(_open, exports, event._data))
            except UserError as error:
                return {said: markup.alert(str(error))}
            what = f"{counted(len(opened.marks), 'region')} of {opened.name}"
            spent = markup.spent(what, device(next(iter(exports.predictors.values()))), seconds)
            return {picture: opened, stage: markup.stage(opened), said: spent, **dict.fromkeys(results, "")}

        for begin in (drop.upload, drop.select, *([hits.select] if hits else [])):
            shown = begin(show, None, [picture, stage, said, *results], show_progress_on=stage, **_turn())
            if "caption" in cards:
                result, run, model = cards["caption"]
                shown.then(
                    lambda own, name, run=run: run(own, name) if own else "", [picture, model], result, **_turn()
                )
    return page.queue(max_size=WAITING, api_open=False)


def looks() -> dict[str, Any]:
    """Return theme and styles of the page, for `gradio.mount_gradio_app`; all fonts are Gradio's own files."""
    import gradio as gr

    # Gradio 6's semi-bold files lack Latin letters
    fonts = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif")
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts)
    return {"theme": theme, "css": _beside("page.css")}


def device(predictor: Predictor) -> str:
    """What a model is computed on."""
    place = predictor.trained.device
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def _card(html: Any, exports: Exports, verb: str, picture: Any) -> tuple[Any, Callable[..., str], Any]:
    """Add the card of a verb; return where its results go, what fills that, and the choice of exports."""
    import gradio as gr

    title, label, hint = CARDS[verb]
    names = exports.able(verb)
    card = abilities_of(exports.predictors[names[0]].trained.processor)[verb].example  # what the model card says
    example = re.findall(r'"([^"]+)"', card)[-1]

    def run(own: Picture | None, name: str, text: str = "") -> str:
        try:
            return _shown(exports, verb, own, name, text)
        except UserError as error:
            return markup.alert(str(error))

    with gr.Column(elem_classes="dv-card"):
        begin = html(markup.title(title, hint, example if label else ""))
        model = gr.Dropdown(names, value=names[0], label="Export", visible=len(names) > 1)
        if not label:
            result = html(elem_id=f"dv-{verb}")
            model.change(run, [picture, model], result, **_turn())
            return result, run, model
        text = gr.Textbox(
            label=label, placeholder=example, max_lines=1, max_length=LONGEST_TEXT, submit_btn=title.split()[0]
        )
        result = html(elem_id=f"dv-{verb}")
        text.submit(run, [picture, model, text], result, **_turn())

        def take(event: gr.EventData) -> str:
            return str((event._data or {}).get("text", ""))

        for place in (begin, result):
            place.select(take, None, text, **_turn()).then(run, [picture, model, text], result, **_turn())
    return result, run, model


def _search(html: Any, exports: Exports, picture: Any) -> Any:
    """Add the card of the search; return the place of the images found."""
    import gradio as gr

    assert exports.index is not None and exports.searcher is not None
    number, predictor = len(exports.index), exports.predictors[exports.searcher]

    def find(search: Callable[[], Any]) -> str:
        try:
            found, seconds = _timed(search)
        except UserError as error:
            return markup.alert(str(error))
        what = f"{counted(number, 'image')} compared by {exports.searcher}"
        return markup.hits(found) + markup.spent(what, device(predictor), seconds)

    def by_image(own: Picture | None) -> str:
        return find(lambda: exports.similar(_chosen(own)))

    with gr.Column(elem_classes="dv-card"):
        html(markup.title("Search", f"{counted(number, 'image')}, by a text or by the image. Choose one to open it."))
        text = gr.Textbox(
            label="Text", placeholder="two blue squares", max_lines=1, max_length=LONGEST_TEXT, submit_btn="Search"
        )
        like = gr.Button("Search by the image", size="sm")
        hits = html(elem_id="dv-search")
        text.submit(lambda words: find(lambda: exports.search(words)), text, hits, **_turn())
        like.click(by_image, picture, hits, **_turn())
    return hits


def _open(exports: Exports, sent: Mapping[str, Any] | None) -> Picture:
    """Open what the browser sent: the id of an image that is known here, or the content of a file."""
    sent = sent or {}  # nothing, from another client than the page
    if "open" in sent:
        return exports.open_known(str(sent["open"]))
    name = visible(str(sent.get("name", "")))[:80] or "the image"
    content, size = str(sent.get("content", "")), sent.get("size")
    if (isinstance(size, int) and size > IMAGE_BYTES) or len(content) > IMAGE_BYTES * 4 // 3 + 4:
        raise UserError(f"{name} has more than {IMAGE_BYTES // 2**20} MB; make it smaller")
    try:
        return exports.open(base64.b64decode(content, validate=True), name)
    except binascii.Error:
        raise UserError(f"the upload of {name} is incomplete; choose it again") from None


def _chosen(own: Picture | None) -> Picture:
    if own is None:
        raise UserError("there is no image yet; choose one first")
    return own


def _shown(exports: Exports, verb: str, own: Picture | None, name: str, text: str) -> str:
    """Return what an export makes of an image as HTML, with what was computed, where, and how long it took."""
    regions = exports.regions(_chosen(own), name)
    html, seconds = _timed(partial(_HTML[verb], exports.predictors[name], regions, text))
    count = counted(len(regions), "region")
    what = f"{name} with {count}" + ("" if verb == "ground" else ", each left out once")
    return html + markup.spent(what, device(exports.predictors[name]), seconds)


def _caption(predictor: Predictor, regions: Regions, text: str) -> str:
    return markup.caption(caption(predictor, regions)[1])


def _answer(predictor: Predictor, regions: Regions, text: str) -> str:
    return markup.results(answers(predictor, regions, text))


def _match(predictor: Predictor, regions: Regions, text: str) -> str:
    whole, changes = match(predictor, regions, text)
    return markup.results([whole]) + markup.changes(changes, whole.probability or 0.0)


def _ground(predictor: Predictor, regions: Regions, text: str) -> str:
    return markup.grounded(*ground(predictor, regions, text))


_HTML: dict[str, Callable[[Predictor, Regions, str], str]] = {
    "caption": _caption,
    "answer": _answer,
    "match": _match,
    "ground": _ground,
}


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the seconds that it took; it is on the CPU, so a GPU has finished too."""
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def _turn() -> dict[str, Any]:
    """Return the arguments of events that take their turn, since one model is computed at a time."""
    return {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
