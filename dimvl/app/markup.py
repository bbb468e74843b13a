"""Results as HTML for the page; every text from outside is escaped.

`data-marks` of an element are the regions that the page shows while a pointer is over it, it has the focus or was
tapped; `data-said` is what is said beside the image meanwhile. page.js does both.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape

from dimvl.app.exports import VERBS, Exports, Picture, Shown
from dimvl.app.results import Change, Mark, Result
from dimvl.drawing import BOX_COLOURS
from dimvl.showing import counted, visible

FAINTEST = 0.15
"""Regions with less heat, without which about 2% of a probability are lost, are not shown."""
MOST_MARKS = 8
MOST_CHANGES = 6


def text(value: str) -> str:
    """Escape a text from outside."""
    return escape(visible(value))


def percent(value: float) -> str:
    """A probability without the precision that it does not have."""
    return f"{100 * value:.1f}%" if 0.0005 <= value < 0.9995 else "0%" if value < 0.5 else "100%"


def alert(message: str) -> str:
    """A mistake in one sentence."""
    return f'<p class="dv-alert" role="alert">{text(message)}</p>'


def spent(what: str, device: str, seconds: float) -> str:
    """What was computed, where, and how long that took."""
    return f'<p class="dv-spent">{text(what)} · {text(device)} · <b>{1000 * seconds:.0f} ms</b></p>'


def header(exports: Exports) -> str:
    """What the page knows: the exports and what each can do."""
    rows = []
    for name, predictor in exports.predictors.items():
        verbs = [verb for verb in VERBS if name in exports.able(verb)] + ["search"] * (name == exports.searcher)
        number = predictor.num_parameters
        size = f"{number / 1e6:.1f} million parameters" if number > 1e5 else counted(number, "parameter")
        rows.append(f"<li><b>{text(name)}</b> {', '.join(verbs)} · {size}</li>")
    synthetic = [name for name, predictor in exports.predictors.items() if predictor.trained.synthetic]
    known = f"Trained on synthetic scenes only: {', '.join(synthetic)}. What is said of other images means nothing."
    note = f'<p class="dv-note">{text(known)}</p>' if synthetic else ""
    return (
        '<header class="dv-head"><h1>dimvl</h1><p>What a model says about an image, and what that rests on</p>'
        f"<ul>{''.join(rows)}</ul></header>{note}"
    )


def title(name: str, hint: str, example: str = "") -> str:
    """Title of a card, what it is for, and a text to try."""
    offered = f' <button type="button" class="dv-try" data-text="{text(example)}">Try “{text(example)}”</button>'
    return f'<h2>{text(name)}</h2><p class="dv-hint">{text(hint)}{offered if example else ""}</p>'


def drop(examples: Iterable[Shown]) -> str:
    """The place where images are dropped, with examples."""
    offered = "".join(_thumbnail(one, f"Example {one.image_id}") for one in examples if one.uri)
    return (
        '<div class="dv-drop"><input type="file" accept="image/*" tabindex="-1" aria-hidden="true">'
        '<button type="button" class="dv-choose"><b>Choose an image</b><span>or drop or paste one '
        "anywhere on this page</span></button>"
        f'<div class="dv-strip" role="group" aria-label="Examples">{offered}</div></div>'
    )


def stage(picture: Picture | None) -> str:
    """The image with its regions; before there is one, its place."""
    if picture is None:
        return '<div class="dv-empty"><p>The image and its regions appear here.</p></div>'
    ratio = picture.size[0] / picture.size[1]
    order = sorted(range(len(picture.marks)), key=lambda place: -_area(picture.marks[place]))
    regions = "".join(_region(place, picture.marks[place]) for place in order)  # small ones on top
    concepts = "".join(
        f'<li style="--colour:{_colour(place)}">{_shows([mark], _scored(mark))}{text(mark.name) or "unnamed"} '
        f"<b>{mark.value:.2f}</b></button></li>"
        for place, mark in enumerate(picture.marks)
    )
    return (
        f'<figure class="dv-stage" style="--ratio:{ratio:.4f}"><div class="dv-frame">'
        f'<img src="{picture.uri}" alt="{text(picture.name)}">'
        '<svg class="dv-veil" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"></svg>'
        f'{regions}</div><figcaption class="dv-said" role="status" aria-live="polite"></figcaption></figure>'
        f'<ul class="dv-concepts" aria-label="Regions">{concepts}</ul>'
    )


def caption(words: Sequence[Result]) -> str:
    """A caption word by word."""
    shown = " ".join(f"{_shows(one.marks, _rests(one), 'dv-word')}{text(one.text)}</button>" for one in words)
    return f'<p class="dv-caption">{shown}</p>'


def results(found: Sequence[Result]) -> str:
    """Texts with probabilities, the regions that each rests on named below it."""
    rows = "".join(
        f"<li>{_shows(one.marks, _rests(one), 'dv-row')}{_bar(one.probability or 0.0)}<span>{text(one.text)}</span>"
        f"<b>{percent(one.probability or 0.0)}</b><small>{text(_names(one.marks))}</small></button></li>"
        for one in found
    )
    return f'<ol class="dv-rows">{rows}</ol>'


def changes(found: Sequence[tuple[Change, float]], whole: float) -> str:
    """The changes of a text that fit best, against the text itself."""
    if not found:
        return '<p class="dv-hint">No word of this text is one that the page can change.</p>'
    better = sum(value > whole for _, value in found)
    rows = "".join(
        f'<li><button type="button" class="dv-row" data-text="{text(change.text)}">{_bar(value)}<span>'
        f"{text(change.text[: change.place])}<mark>{text(change.new)}</mark>"
        f"{text(change.text[change.place + len(change.new) :])}</span><b>{percent(value)}</b></button></li>"
        for change, value in found[:MOST_CHANGES]
    )
    said = f"{better or 'None'} of {counted(len(found), 'change')} of one word {'fit' if better > 1 else 'fits'} better"
    return f'<p class="dv-hint">{said}. Choose one to go on from it.</p><ol class="dv-rows">{rows}</ol>'


def grounded(found: Sequence[Mark], nowhere: float) -> str:
    """The regions that a phrase refers to."""
    rows = [
        f"<li>{_shows([mark], f'{mark.name}: {percent(mark.value)}', 'dv-row')}{_bar(mark.value)}"
        f"<span>{text(mark.name) or 'unnamed region'}</span><b>{percent(mark.value)}</b></button></li>"
        for mark in found
    ]
    if nowhere:
        none = f'<div class="dv-row">{_bar(nowhere)}<span>no region</span><b>{percent(nowhere)}</b></div>'
        rows.insert(0 if nowhere > max([mark.value for mark in found], default=0.0) else len(rows), f"<li>{none}</li>")
    return f'<ol class="dv-rows">{"".join(rows)}</ol>'


def hits(found: Sequence[Shown]) -> str:
    """The images that a search found."""
    shown = "".join(_thumbnail(one, f"{one.image_id}, score {one.score:.3f}", f"{one.score:.3f}") for one in found)
    return f'<div class="dv-hits">{shown}</div>'


def _thumbnail(one: Shown, label: str, below: str = "") -> str:
    image = f'<img src="{one.uri}" alt="">' if one.uri else "<i>no image</i>"
    note = f"<small>{text(one.image_id)} <b>{below}</b></small>" if below else ""
    return (
        f'<button type="button" class="dv-thumb" data-open="{text(one.image_id)}" aria-label="{text(label)}">'
        f"{image}{note}</button>"
    )


def _region(place: int, mark: Mark) -> str:
    left, top, right, bottom = (100 * side for side in mark.box)
    sides = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
    edges = " dv-low" * (top < 12) + " dv-end" * (left > 55)
    opened = _shows([mark], _scored(mark), f"dv-region{edges}", f"{sides};--colour:{_colour(place)}")
    return f"{opened}<span>{text(mark.name) or 'unnamed'} <b>{mark.value:.2f}</b></span></button>"


def _shows(marks: Sequence[Mark], said: str, kind: str = "dv-chip", style: str = "") -> str:
    """Begin a button that shows regions."""
    shown = [
        [*(round(100 * side, 2) for side in mark.box), round(mark.heat, 3)]
        for mark in marks[:MOST_MARKS]
        if mark.heat >= FAINTEST
    ]
    styled = f' style="{style}"' if style else ""
    return (
        f'<button type="button" class="{kind}"{styled} data-marks="{escape(json.dumps(shown))}" '
        f'data-said="{text(said)}" aria-label="{text(said)}">'
    )


def _rests(one: Result) -> str:
    names = _names(one.marks)
    return f"{one.text}{'' if one.probability is None else f' {percent(one.probability)}'}: {names}"


def _names(marks: Sequence[Mark]) -> str:
    """The regions without which a result is less probable, with the share of its probability that is lost."""
    strong = [f"{mark.name or 'unnamed'} ({-100 * mark.heat**2:.0f}%)" for mark in marks if mark.heat >= FAINTEST]
    return f"rests on {', '.join(strong[:2]) or 'no single region'}"


def _scored(mark: Mark) -> str:
    return f"{mark.name or 'unnamed region'}, score {mark.value:.2f}"


def _bar(value: float) -> str:
    return f'<i style="width:{100 * min(max(value, 0.0), 1.0):.1f}%"></i>'


def _area(mark: Mark) -> float:
    return (mark.box[2] - mark.box[0]) * (mark.box[3] - mark.box[1])


def _colour(place: int) -> str:
    return BOX_COLOURS[place % len(BOX_COLOURS)]
