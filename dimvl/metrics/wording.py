"""Two faults of form that rewards teach captions: endings in the middle of a phrase, and repeated phrases."""

from collections.abc import Collection

from dimvl.metrics.cider import plain_words

BAD_ENDINGS = frozenset(
    "a an the this that his her its their and or with in on of at to for from by".split()  # noqa: SIM905 - shorter
)
"""Articles, possessives, conjunctions and prepositions; the list of self-critical.pytorch (Luo) and a few more."""


def wording(captions: Collection[str]) -> dict[str, float]:
    """Return the shares of captions with a bad ending, and with a repeated phrase.

    `bad_endings`: the last word is one of `BAD_ENDINGS`, or there is none. `repeated_phrases`: three words in a row
    occur twice, possibly overlapping. Case and punctuation do not count. Some captions of people repeat a phrase too.
    """
    words = [plain_words(caption) for caption in captions]
    trigrams = [list(zip(each, each[1:], each[2:], strict=False)) for each in words]
    bad = sum(not each or each[-1] in BAD_ENDINGS for each in words)
    repeated = sum(len(set(each)) < len(each) for each in trigrams)
    return {"bad_endings": bad / len(words), "repeated_phrases": repeated / len(words)}
