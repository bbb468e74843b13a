"""Captions made false by changing one word: hard negatives for image-text matching.

The ordered pairs (old word, new word) of training and tests are disjoint, and (b, a) is always in the set of (a, b), so
that words alone do not reveal a test negative. Categories of two words (size, texture, left and right, top and bottom)
would be unlearnable if a direction were kept for tests; they are changed in training only.
"""

import re
from itertools import permutations
from typing import Literal

import numpy as np

from dimvl.data.scenes.facts import judge
from dimvl.data.scenes.language import parse_caption
from dimvl.data.scenes.phrases import NAMED_TEXTURES, NUMBER_WORDS, plural, shuffled
from dimvl.data.scenes.world import COLOURS, SHAPES, SIZES, World

WORD_CATEGORIES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "texture": NAMED_TEXTURES,
    "horizontal": ("left", "right"),
    "height": ("top", "bottom"),
    "vertical": ("above", "below", "over", "beneath", "under"),
    "number": tuple(NUMBER_WORDS.values()),
}
# Test pairs are this many positions apart in the category's words, cyclically.
_TEST_STEPS = {"colour": (2, 5), "shape": (2, 3), "number": (2, 3)}
_UPWARD = ("above", "over")
_TEST_VERTICAL = ({"above", "beneath"}, {"over", "below"})

WordPairs = frozenset[tuple[str, str]]


def word_change_pairs(split: Literal["train", "test"]) -> WordPairs:
    """Return the ordered pairs (old word, new word) for training or for tests."""
    pairs = set()
    for category, words in WORD_CATEGORIES.items():
        for old, new in permutations(words, 2):
            if category == "vertical":
                if (old in _UPWARD) == (new in _UPWARD):
                    continue  # synonyms: the caption would remain true
                is_test = {old, new} in _TEST_VERTICAL
            else:
                step = (words.index(new) - words.index(old)) % len(words)
                is_test = step in _TEST_STEPS.get(category, ())
            if is_test == (split == "test"):
                pairs.add((old, new))
                if category == "shape":
                    pairs.add((plural(old), plural(new)))
    return frozenset(pairs)


def changed_caption(caption: str, world: World, generator: np.random.Generator, pairs: WordPairs) -> str | None:
    """Change one word of a caption so that it is false in `world`; None if no allowed change does.

    The article is adapted to the new word ("a red" becomes "an orange"). Held-out combinations are mentioned only in
    worlds that contain one: elsewhere they would reveal that the caption is false.

    Args:
        caption: a sentence of the grammar, with or without full stop.
        world: the scene.
        generator: chooses among the possible changes.
        pairs: allowed changes, see `word_change_pairs`.

    """
    words = re.findall(r"\w+|[^\w\s]", caption.lower())
    changes = [(place, new) for place, word in enumerate(words) for old, new in sorted(pairs) if old == word]
    for place, new in shuffled(changes, generator):
        changed = [*words[:place], new, *words[place + 1 :]]
        if changed[max(place - 1, 0)] in ("a", "an"):
            changed[place - 1] = "an" if new[0] in "aeiou" else "a"
        text = re.sub(r" ([,.])", r"\1", " ".join(changed))
        if _is_fair(text, world):
            return text
    return None


def _is_fair(text: str, world: World) -> bool:
    """Return whether the caption can be parsed, is false, and does not reveal that by a held-out combination."""
    facts = parse_caption(text)
    if facts is None or all(judge(fact, world) for fact in facts):
        return False
    named = any(phrase is not None and phrase.is_held_out for fact in facts for phrase in (fact.phrase, fact.other))
    return not named or any(item.is_held_out for item in world.objects)
