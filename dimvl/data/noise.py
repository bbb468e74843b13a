"""Captions made noisy as those of the web are, with the kind of noise of each, so that a filter can be measured.

A caption of another image, one with one fact changed, one that is cut off, or boilerplate: names of files, prices,
places, other languages. What happens to a caption depends on seed, key and its place only.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from dimvl.data.examples import keyed_generator

CLEAN = "none"
"""Kind of a caption that is as it was."""
KINDS = ("swapped", "changed", "truncated", "boilerplate")
FEWEST_WORDS = 4
"""Shorter captions are not cut off."""
TRIES = 10
BOILERPLATE = (
    *(
        "IMG_{number:04d}.JPG",
        "DSC{number:05d}.jpg",
        "screenshot {number}.png",
        "untitled-{digit}",
        "image {digit} of 9",
    ),
    *("${digit}.99, free shipping", "only {digit} left in stock", "{number} views", "posted on {digit} March"),
    *("click to enlarge", "stock photo {number}", "image may be subject to copyright", "download for free", "shop now"),
    *(
        "Berlin, Germany",
        "São Paulo, Brasil",
        "sin título",
        "ohne Titel",
        "écran {digit}",
        "фото {digit}",
        "画像 {digit}",
    ),
)

Change = Callable[[int, np.random.Generator], str | None]
"""Returns a caption, given by its place, with one fact changed; None if that cannot be done."""
Fits = Callable[[int, str], bool]
"""Whether a text is known to be true of the image of a caption, given by its place."""


class NoisyText(NamedTuple):
    """A caption and its kind of noise, one of `KINDS` or `CLEAN`."""

    text: str
    kind: str


def corrupt(
    images: Sequence[Hashable],
    texts: Sequence[str],
    share: float,
    *key: int | str,
    change: Change,
    fits: Fits = lambda place, text: False,
) -> list[NoisyText]:
    """Make a share of captions noisy, in equal parts of each kind as far as a caption allows it.

    Args:
        images: image of each caption.
        texts: the captions.
        share: of captions that become noisy.
        *key: seed and what else the drawing depends on.
        change: changes one fact.
        fits: texts that it accepts are not used as noise of that image.

    Returns:
        What becomes of each.

    """
    own: dict[Hashable, set[str]] = {}
    for image, text in zip(images, texts, strict=True):
        own.setdefault(image, set()).add(text)

    def swapped(place: int, generator: np.random.Generator) -> str | None:
        return texts[int(generator.integers(len(texts)))]

    def truncated(place: int, generator: np.random.Generator) -> str | None:
        words = texts[place].split()
        if len(words) < FEWEST_WORDS:
            return None
        return " ".join(words[: int(generator.integers(len(words) // 4, 3 * len(words) // 4 + 1)) or 1])

    makers: dict[str, Change] = dict(zip(KINDS, (swapped, change, truncated, _boilerplate), strict=True))

    def noisy(place: int) -> NoisyText:
        generator = keyed_generator(*key, "noise", place)
        if generator.random() < share:
            for kind in generator.permutation(KINDS).tolist():
                for _ in range(TRIES):
                    text = makers[kind](place, generator)
                    if text is not None and text not in own[images[place]] and not fits(place, text):
                        return NoisyText(text, kind)
        return NoisyText(texts[place], CLEAN)

    return [noisy(place) for place in range(len(texts))]


def _boilerplate(place: int, generator: np.random.Generator) -> str:
    template = BOILERPLATE[int(generator.integers(len(BOILERPLATE)))]
    return template.format(number=int(generator.integers(1, 10_000)), digit=int(generator.integers(2, 10)))
