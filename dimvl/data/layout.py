"""Which rows of a ragged batch belong together: lengths of prefixes and texts, and where each starts.

Letters: P prefixes, T texts, S pieces, N rows, Nv visual rows.
"""

from dataclasses import dataclass

import numpy as np


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the integer ranges `start, start + 1, ...` of the given lengths: (S,), (S,) -> (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def starts_of(lengths: np.ndarray, first: int = 0) -> np.ndarray:
    """Where each of the consecutive pieces starts, the first one at `first`: (S,) -> (S,)."""
    return first + np.cumsum(lengths) - lengths


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which rows belong together.

    Attributes:
        num_regions: (P,) visual rows of each prefix; 0 is legal.
        num_context: (P,) context rows of each prefix; 0 is legal.
        text_lengths: (T,) rows of each text.
        text_prefix: (T,) the prefix of each text, ascending.
        seq2seq: (P,) True: the prefix sees itself only and a text sees the prefix and its own past (any number of
            texts); False: prefix and text see each other entirely (at most one text).
        apart: (P,) True: the prefix sees itself only and each of any number of texts sees itself only, entirely; None
            if no prefix is of this kind.

    """

    num_regions: np.ndarray
    num_context: np.ndarray
    text_lengths: np.ndarray
    text_prefix: np.ndarray
    seq2seq: np.ndarray
    apart: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check that a bidirectional prefix has at most one text."""
        texts = np.bincount(self.text_prefix, minlength=len(self.num_regions))
        if (texts[self.together] > 1).any():
            raise ValueError("a bidirectional prefix takes at most one text; give it one prefix per text")

    @property
    def together(self) -> np.ndarray:
        """(P,) bool, prefixes that see their text and are seen by it."""
        return ~self.seq2seq if self.apart is None else ~(self.seq2seq | self.apart)

    @property
    def num_vision(self) -> int:
        """Number of visual rows Nv."""
        return int(self.num_regions.sum())

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return self.num_vision + int(self.num_context.sum()) + int(self.text_lengths.sum())

    @property
    def region_starts(self) -> np.ndarray:
        """(P,) row of each prefix's first region."""
        return starts_of(self.num_regions)

    @property
    def context_starts(self) -> np.ndarray:
        """(P,) row of each prefix's first context token."""
        return starts_of(self.num_context, self.num_vision)

    @property
    def text_starts(self) -> np.ndarray:
        """(T,) row of each text's first token."""
        return starts_of(self.text_lengths, self.num_vision + int(self.num_context.sum()))
