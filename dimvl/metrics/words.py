"""Words of captions, and whether captions end well; for scores during training, not for papers."""

import re
from collections.abc import Sequence

# Words that do not end an English caption: articles and possessives, conjunctions, forms of "to be", and prepositions
# that are hardly ever adverbs ("up", "down", "off", "by", "in" and "on" can end a good caption).
_UNFINISHED = frozenset(
    (
        *("a", "an", "the", "its", "their", "my", "your", "our", "and", "or", "but", "nor", "while", "as", "than"),
        *("that", "which", "who", "whose", "because", "if", "is", "are", "was", "were", "be", "being", "very"),
        *("of", "with", "to", "from", "into", "onto", "at", "for", "between", "through"),
    )
)


def plain_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    The official caption scores use PTB tokens, so CIDEr-D on these words is close to the official score but not equal.
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def ends_badly(words: Sequence[str]) -> bool:
    """Return whether a caption is empty or ends in a word that needs another after it."""
    return not words or words[-1] in _UNFINISHED
