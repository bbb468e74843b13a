"""Captions with one word changed, so that they are false: hard negatives for image-text matching.

The ordered pairs (old word, new word) of training and of tests are disjoint, and with (a, b) always goes (b, a), so a
model cannot know a test negative by its words. A category of only two words (sizes, textures, left and right, top and
bottom) would be unlearnable if a direction were kept for tests, so both directions belong to training and tests never
change them.
"""

import re
from itertools import permutations
from typing import Literal

import numpy as np

from dimvl.data.scenes.facts import judge
from dimvl.data.scenes.language import parse_caption
from dimvl.data.scenes.phrases import NUMBER_WORDS, SAID_TEXTURES, plural, shuffled
from dimvl.data.scenes.world import COLOURS, SHAPES, SIZES, World

WORD_CATEGORIES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "texture": SAID_TEXTURES,
    "horizontal": ("left", "right"),
    "height": ("top", "bottom"),
    "vertical": ("above", "below", "over", "beneath", "under"),
    "number": tuple(NUMBER_WORDS.values()),
}
_TEST_STEPS = {"colour": (2, 5), "shape": (2, 3), "number": (2, 3)}
"""Pairs for tests: those this many places apart, around the circle of the category's words."""
_UPWARD = ("above", "over")
_TEST_VERTICAL = ({"above", "beneath"}, {"over", "below"})

WordPairs = frozenset[tuple[str, str]]


def word_change_pairs(split: Literal["train", "test"]) -> WordPairs:
    """Return the ordered pairs (old word, new word) that may be changed in training or in tests."""
    pairs = set()
    for category, words in WORD_CATEGORIES.items():
        for old, new in permutations(words, 2):
            if category == "vertical":
                if (old in _UPWARD) == (new in _UPWARD):
                    continue  # synonyms: nothing becomes false
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
    """Change one word of a caption so that at least one of its facts is false in `world`.

    The article follows the new word ("a red" becomes "an orange"). Held-out combinations are only named in worlds that
    hold one themselves: elsewhere naming one would tell that the caption is false.

    Args:
        caption: of the grammar, with or without full stop.
        world: the scene to be false of.
        generator: of the choice.
        pairs: (old word, new word) that may be changed, see `word_change_pairs`.

    Returns:
        The changed caption, or None where no allowed change makes it false.

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
    """Whether the caption reads, is false, and names no held-out combination that would give it away."""
    facts = parse_caption(text)
    if facts is None or all(judge(fact, world) for fact in facts):
        return False
    named = any(phrase is not None and phrase.is_held_out for fact in facts for phrase in (fact.phrase, fact.other))
    return not named or any(item.is_held_out for item in world.objects)
