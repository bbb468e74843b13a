"""Words of captions, for scores during training, not for papers."""

import re


def plain_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    The official caption scores use PTB tokens, so CIDEr-D on these words is close to the official score but not equal.
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
