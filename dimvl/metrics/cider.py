"""CIDEr-D of many candidates at once, as a reward for self-critical training and as a score.

A text is compared with each reference of its image by the cosine of their n-gram vectors, weighted by the rarity of the
n-grams among images (Vedantam, Zitnick and Parikh, CVPR 2015). The D variant, which the COCO evaluation calls CIDEr,
clips the candidate's counts and multiplies by a Gaussian of the difference in length (in bigrams, as that evaluation
counts it) and by 10. Tokens are words or token ids; for a reward, include the end token, or else truncated texts score
as well as complete ones.

No Python code runs per n-gram: an n-gram is the number of its prefix and its last token, found by binary search in
sorted tables that are built once from the references.

Letters: M candidates, P pairs of a candidate and a reference of its image, N n-grams of one order, of all texts.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np

from dimvl.data.layout import ranges, starts_of

_MAX_ORDER = 4  # n-grams of 1 to 4 tokens
_SIGMA = 6.0  # of the Gaussian
_SCALE = 10.0
_BITS, _LOW = 32, (1 << 32) - 1  # two numbers in one int64
_STOP = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Table:
    """The n-grams of one order in the references.

    Attributes:
        grams: sorted (prefix, last token) and a stop; the index is the number of the n-gram.
        weights: log(images / images with it) of each n-gram, and at the stop that of an n-gram in no image.
        image_grams: sorted (image, n-gram) of the n-grams in any reference of an image, and a stop.
        starts: for each of those, the start of its entries in `references`; at the stop the end.
        references: the references that have it, concatenated.
        counts: its count in each of them.
        norms: length of the weighted vector of each reference.

    """

    grams: np.ndarray
    weights: np.ndarray
    image_grams: np.ndarray
    starts: np.ndarray
    references: np.ndarray
    counts: np.ndarray
    norms: np.ndarray


class CiderD:
    """CIDEr-D against the references of a corpus.

    Args:
        references: at least one text for each image, each a sequence of tokens. The rarity of n-grams comes from these
            images; with a single image every n-gram is in all of them and every score is 0.

    Raises:
        ValueError: no image, or an image without a reference.

    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        self._num_references = np.array([len(texts) for texts in references], dtype=np.int64)
        if not self._num_references.all() or not len(self._num_references):
            raise ValueError("CIDEr-D needs at least one image, and at least one reference for each")
        self._first_reference = starts_of(self._num_references)
        texts = list(chain.from_iterable(references))
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._vocabulary = {token: number for number, token in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        images = np.repeat(np.arange(len(self._num_references)), self._num_references)
        self._tables: list[_Table] = []
        tokens, owners = _numbers(texts, self._vocabulary), np.repeat(np.arange(len(texts)), self._lengths)
        starts, numbers = np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
        for order in range(_MAX_ORDER):
            starts, grams = _extend(starts, numbers, tokens, owners, order)
            known, numbers = np.unique(grams, return_inverse=True)
            self._tables.append(_table(known, numbers, owners[starts], images))

    def scores(self, candidates: Sequence[Sequence[Hashable]], images: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the score of each candidate, (M,) float64 from 0 to 10.

        Args:
            candidates: M texts with the same kind of tokens as the references; an empty one scores 0.
            images: (M,) index of each candidate's image in the references.

        """
        images = np.asarray(images, dtype=np.int64)
        lengths = np.array([len(text) for text in candidates], dtype=np.int64)
        if images.shape != lengths.shape:
            raise ValueError(f"{len(lengths)} candidates need as many images, not an array of shape {images.shape}")
        pairs = self._num_references[images]
        first_pair = starts_of(pairs) - self._first_reference[images]  # pair = first_pair + reference
        candidate = np.repeat(np.arange(len(images)), pairs)  # (P,)
        reference = ranges(self._first_reference[images], pairs)  # (P,)
        similarity = np.zeros(len(reference))
        tokens, owners = _numbers(candidates, self._vocabulary), np.repeat(np.arange(len(images)), lengths)
        starts, numbers = np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
        for order, table in enumerate(self._tables):
            starts, grams = _extend(starts, numbers, tokens, owners, order)
            numbers = _look_up(table.grams, grams)
            dots, norms = _compare(table, owners[starts], numbers, images, first_pair, len(reference))
            both = norms[candidate] * table.norms[reference]
            similarity += np.divide(dots, both, out=np.zeros(len(both)), where=both > 0)
        longer = np.maximum(lengths - 1, 0)[candidate] - np.maximum(self._lengths - 1, 0)[reference]
        similarity *= np.exp(-(longer**2) / (2 * _SIGMA**2))
        return _SCALE / _MAX_ORDER * np.bincount(candidate, similarity, len(images)) / pairs


def _numbers(texts: Sequence[Sequence[Hashable]], vocabulary: dict[Hashable, int]) -> np.ndarray:
    """Return the number of each token; tokens outside the vocabulary are numbered after it."""
    flat = list(chain.from_iterable(texts))
    numbers = np.fromiter(map(vocabulary.get, flat, repeat(-1)), np.int64, len(flat))
    new: dict[Hashable, int] = {}
    for index in np.flatnonzero(numbers < 0):
        numbers[index] = len(vocabulary) + new.setdefault(flat[index], len(new))
    return numbers


def _extend(
    starts: np.ndarray, numbers: np.ndarray, tokens: np.ndarray, owners: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Extend n-grams of `order` tokens, with (N,) starts and numbers, by one token.

    Args:
        starts: index of each n-gram's first token in `tokens`.
        numbers: the number of each n-gram.
        tokens: the tokens of all texts, concatenated.
        owners: the text of each token.
        order: the length of the n-grams.

    Returns:
        Starts of those that stay within their text, and (number, new last token) in one integer.

    """
    fits = starts + order < len(tokens)
    fits[fits] = owners[starts[fits]] == owners[starts[fits] + order]
    starts = starts[fits]
    return starts, numbers[fits] << _BITS | tokens[starts + order]


def _look_up(known: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Return the index of each n-gram in `known`; missing ones are numbered from its stop on."""
    numbers = np.searchsorted(known, grams)
    new = known[numbers] != grams
    numbers[new] = len(known) - 1 + np.unique(grams[new], return_inverse=True)[1]
    return numbers


def _table(known: np.ndarray, numbers: np.ndarray, references: np.ndarray, images: np.ndarray) -> _Table:
    """Build a table from the (N,) numbers and references of n-grams and the (R,) images of the references."""
    used, counts = np.unique(references << _BITS | numbers, return_counts=True)
    references, numbers = used >> _BITS, used & _LOW
    keys = images[references] << _BITS | numbers
    order = np.argsort(keys, kind="stable")
    image_grams, starts = np.unique(keys[order], return_index=True)
    in_images = np.bincount(image_grams & _LOW, minlength=len(known))
    weights = np.log(float(images[-1] + 1)) - np.log(np.append(in_images, 1))
    norms = np.sqrt(np.bincount(references, (counts * weights[numbers]) ** 2, len(images)))
    known, image_grams = np.append(known, _STOP), np.append(image_grams, _STOP)
    starts = np.append(starts, len(keys))
    references, counts = references[order].astype(np.int32), counts[order].astype(np.int32)  # half the memory
    return _Table(known, weights, image_grams, starts, references, counts, norms)


def _compare(
    table: _Table, owners: np.ndarray, numbers: np.ndarray, images: np.ndarray, first_pair: np.ndarray, num_pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the n-grams of one order of candidates with their references.

    Args:
        table: the n-grams of that order.
        owners: (N,) candidate of each n-gram.
        numbers: (N,) number of each n-gram.
        images: (M,) image of each candidate.
        first_pair: (M,) a candidate's first pair minus its first reference.
        num_pairs: P.

    Returns:
        (P,) clipped dot products with the references, and (M,) lengths of the weighted vectors.

    """
    used, counts = np.unique(owners << _BITS | numbers, return_counts=True)
    owners, numbers = used >> _BITS, used & _LOW
    weights = table.weights[np.minimum(numbers, len(table.grams) - 1)]
    norms = np.sqrt(np.bincount(owners, (counts * weights) ** 2, len(images)))
    keys = images[owners] << _BITS | numbers
    found = np.searchsorted(table.image_grams, keys)
    known = table.image_grams[found] == keys
    owners, counts, weights, found = owners[known], counts[known], weights[known], found[known]
    uses = table.starts[found + 1] - table.starts[found]
    entries = ranges(table.starts[found], uses)
    owners, counts, weights = np.repeat(owners, uses), np.repeat(counts, uses), np.repeat(weights, uses)
    ours, theirs = np.minimum(counts, table.counts[entries]) * weights, table.counts[entries] * weights
    dots = np.bincount(first_pair[owners] + table.references[entries], ours * theirs, num_pairs)
    return dots, norms


def plain_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    For scores during training only: the official ones use PTB tokens, so CIDEr-D on these words is close but not equal.
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
