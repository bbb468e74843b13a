"""Two faults that captions learn from rewards: they end in the middle of a phrase, or repeat one."""

from dimvl.metrics.cider import plain_words

BAD_ENDINGS = frozenset(
    "a an the this that his her its their and or with in on of at to for from by".split()  # noqa: SIM905 - shorter
)
"""Articles, possessives, conjunctions and prepositions; the list of self-critical.pytorch (Luo) and a few more."""


def faults(caption: str) -> dict[str, float]:
    """Return 1 for each fault of form that a caption has, else 0; those of several captions are means.

    `bad_endings`: the last word is one of `BAD_ENDINGS`, or there is none. `repeated_phrases`: three words in a row
    occur twice, possibly overlapping. Case and punctuation do not count. Some captions of people repeat a phrase too.
    """
    words = plain_words(caption)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return {
        "bad_endings": float(not words or words[-1] in BAD_ENDINGS),
        "repeated_phrases": float(len(set(trigrams)) < len(trigrams)),
    }
