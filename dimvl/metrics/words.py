"""Plain words of captions, and how captions end; for scores during training, not for papers."""

import re
from collections.abc import Sequence

# Words that an English caption does not end with: articles and possessives, conjunctions, forms of "to be", and
# prepositions that are hardly ever adverbs ("up", "down", "off", "by", "in" and "on" may well end a good caption).
UNFINISHED = frozenset(
    (
        *("a", "an", "the", "its", "their", "my", "your", "our", "and", "or", "but", "nor", "while", "as", "than"),
        *("that", "which", "who", "whose", "because", "if", "is", "are", "was", "were", "be", "being", "very"),
        *("of", "with", "to", "from", "into", "onto", "at", "for", "between", "through"),
    )
)


def plain_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    Not the PTB tokenisation of the official caption scores: CIDEr-D on these words is close to the official one but
    not equal.
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def ends_badly(words: Sequence[str]) -> bool:
    """Tell whether a caption is empty or ends in a word that something has to follow."""
    return not words or words[-1] in UNFINISHED
