"""The names of regions as words for the model: tags beside the text, or words in the rows of the regions.

DiMBERT represents visual information "in textual format" by concepts; the paper does not say which and how many. Our
interpretation of the text: distinct class words, with attributes if known, with a score of at least .3, best first,
within a budget of word pieces, whole words only. Words in the rows of regions cost no rows, and say which region each
is of. Recorded in the configuration and in the export.

Letters: I images, R regions, K classes and A attributes of a region, S tags, Z word pieces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

from dimvl.data.layout import ranges, starts_of
from dimvl.data.tokenizer import Tokenizer

Named = Sequence[np.ndarray]
"""Class ids (R, K) and scores (R, K), attribute ids (R, A) and scores (R, A), best first; ids are -1 for none."""
Numbers = TypeVar("Numbers", int, np.ndarray)


@dataclass(frozen=True)
class RegionWords:
    """The words in the rows of R regions.

    Attributes:
        token_ids: (Z,) int64 word pieces, region by region.
        weights: (Z,) float32; those of a region sum to 1.
        counts: (R,) int64 word pieces of each region; 0 for one without a name.

    """

    token_ids: np.ndarray
    weights: np.ndarray
    counts: np.ndarray


class TagWriter:
    """Turns the names of regions into the context `[CLS] tags of image 1 [SEP] ...`, and into words of each region.

    Args:
        tokenizer: the model's tokenizer.
        classes: class names of the extractor, by id.
        attributes: attribute names of the extractor, by id.
        min_score: classes and attributes below this score give no word.
        max_tokens: budget of word pieces for all tags, shared equally by the images; 0 for no tags.
        concepts: whether the attributes, or the classes if there are none, are concepts from another model. Several are
            true of a region, and each is a tag of its own.
        region_words: whether the rows of regions have words.
        prompt: soft rows at the end of each context, whose ids are -1, -2 and so on.

    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        attributes: Sequence[str],
        min_score: float,
        max_tokens: int,
        concepts: bool = False,
        region_words: bool = False,
        prompt: int = 0,
    ) -> None:
        self.prompt, self._soft = prompt, [-1 - place for place in range(prompt)]
        self.concepts, self.region_words = concepts, region_words
        self.classes = [tuple(tokens) for tokens in tokenizer.encode_all(classes)]
        self.attributes = [tuple(tokens) for tokens in tokenizer.encode_all(attributes)]
        self.min_score = min_score
        self.max_tokens = max_tokens
        self.cls, self.sep = tokenizer.cls, tokenizer.sep
        self._pieces = _Pieces([*self.classes, *self.attributes])

    @property
    def max_length(self) -> int:
        """Rows of the longest context, including [CLS], [SEP] and soft rows."""
        return self.max_tokens + 2 + self.prompt

    def room(self, images: Numbers) -> Numbers:
        """Word pieces that each image of a prefix of so many images may have; below 1 for no tags.

        The separators between images count towards the budget.
        """
        return (self.max_tokens - (images - 1)) // images

    def context(self, images: Sequence[Named]) -> np.ndarray:
        """Write the context of a prefix.

        If less than one word piece is left for each image, there are no tags, and the context is `[CLS] [SEP]`. Soft
        rows follow.

        Args:
            images: classes and attributes of the regions of each image, best region first; none for no tags.

        Returns:
            (C,) token ids, C at most `max_length`.

        """
        room = self.room(len(images)) if images else 0
        if room < 1:
            return np.array([self.cls, self.sep, *self._soft], dtype=np.int64)
        tokens = [self.cls]
        for regions in images:
            tokens += [*self._tags(regions, room), self.sep]
        return np.array([*tokens, *self._soft], dtype=np.int64)

    def _tags(self, regions: Named, room: int) -> Iterator[int]:
        """Token ids of the tags of one image, at most `room`."""
        tags: dict[tuple[int, ...], None] = {}
        for tag in chain(self._phrases(regions), self._words(regions) if self.concepts else ()):
            if room < 1:
                break
            if tag not in tags and len(tag) <= room:
                tags[tag] = None
                room -= len(tag)
        return (token for tag in tags for token in tag)

    def _phrases(self, regions: Named) -> Iterator[tuple[int, ...]]:
        """The class of each region that has one, with its attributes unless these are concepts."""
        class_ids, class_scores, attribute_ids, attribute_scores = regions
        if not class_ids.shape[1] or (self.concepts and not self.attributes):
            return
        known = np.flatnonzero((class_ids[:, 0] >= 0) & (class_scores[:, 0] >= self.min_score))
        described = (attribute_scores[known] >= self.min_score) & (not self.concepts)
        attributes = np.where(described, attribute_ids[known], -1)
        for class_id, own in zip(class_ids[known, 0].tolist(), attributes.tolist(), strict=True):
            words = [*(self.attributes[attribute] for attribute in own if attribute >= 0), self.classes[class_id]]
            yield tuple(token for word in words for token in word)

    def _words(self, regions: Named) -> Iterator[tuple[int, ...]]:
        """Concepts, best first: of the regions without a class, if there are any and concepts are not the classes."""
        ids, scores, attribute_ids, attribute_scores = regions
        names = self.classes
        if self.attributes:
            without = ids[:, 0] < 0 if ids.shape[1] else np.ones(len(ids), bool)
            rows = without if without.any() else slice(None)
            ids, scores, names = attribute_ids[rows], attribute_scores[rows], self.attributes
        good = (ids >= 0) & (scores >= self.min_score)
        for place in np.argsort(-scores[good].astype(np.float32), kind="stable"):
            yield names[ids[good][place]]

    def lengths(self, regions: Named, num_regions: np.ndarray, room: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Word pieces of the tags of many images at once: (I,).

        They are those of `context`; where regions may be hidden, an upper bound whichever these are.

        Args:
            regions: of all images, end to end.
            num_regions: (I,)
            room: (I,) largest number of word pieces.
            hidden: (I,) bool, whether regions may be hidden.

        """
        owner = np.repeat(np.arange(len(num_regions)), num_regions)
        tags = [self._phrase_keys(regions, owner)]
        if self.concepts:
            tags.append(self._word_keys(regions, owner, hidden))
        images, keys, lengths = (np.concatenate(columns) for columns in zip(*tags, strict=True))
        order = np.lexsort((keys, images))  # stable: of equal tags of an image, the best comes first
        images, keys, lengths = images[order], keys[order], lengths[order]
        first = np.append(True, (np.diff(images) != 0) | (keys[1:] != keys[:-1]))[: len(images)]
        best_first = np.argsort(order[first])
        images, lengths = images[first][best_first], lengths[first][best_first]
        by_image = np.argsort(images, kind="stable")
        total = np.bincount(images, lengths, len(room)).astype(np.int64)
        counts = np.bincount(images, minlength=len(room)) * ((total > room) & ~hidden)
        used, starts = np.minimum(total, room), starts_of(np.bincount(images, minlength=len(room)))
        used[counts > 0] = 0
        for rank in range(counts.max(initial=0)):
            own = np.flatnonzero(counts > rank)
            length = lengths[by_image[starts[own] + rank]]
            used[own] += np.where(used[own] + length <= room[own], length, 0)
        return used

    def _phrase_keys(self, regions: Named, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, key and length of what `_phrases` gives: (S,), (S,), (S,)."""
        class_ids, class_scores, attribute_ids, attribute_scores = regions
        if not class_ids.shape[1] or (self.concepts and not self.attributes):
            return owner[:0], self._pieces.keys[:0], self._pieces.lengths[:0]
        known = np.flatnonzero((class_ids[:, 0] >= 0) & (class_scores[:, 0] >= self.min_score))
        described = (attribute_scores[known] >= self.min_score) & (attribute_ids[known] >= 0) & (not self.concepts)
        attributes = np.where(described, attribute_ids[known].astype(np.int64) + len(self.classes), -1)
        keys, lengths = self._pieces.phrases(np.column_stack([attributes, class_ids[known, 0]]))
        return owner[known], keys, lengths

    def _word_keys(
        self, regions: Named, owner: np.ndarray, hidden: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, key and length of what `_words` gives, of all regions where some may be hidden: (S,), (S,), (S,)."""
        ids, scores, attribute_ids, attribute_scores = regions
        used, first = np.ones(len(owner), bool), 0
        if self.attributes:
            without = ids[:, 0] < 0 if ids.shape[1] else used
            some = np.bincount(owner[without], minlength=len(hidden)) > 0
            used = without | ~some[owner] | hidden[owner]
            ids, scores, first = attribute_ids, attribute_scores, len(self.classes)
        row, column = np.nonzero((ids >= 0) & (scores >= self.min_score) & used[:, None])
        order = np.lexsort((-scores[row, column].astype(np.float32), owner[row]))
        names = first + ids[row, column].astype(np.int64)[order]
        return owner[row][order], self._pieces.keys[names], self._pieces.lengths[names]

    def words(self, regions: Named, shown: np.ndarray) -> RegionWords | None:
        """Return the words of each region's classes and attributes, weighted by their scores; None if it has none.

        Those with a score of at least `min_score` count, and a word of several pieces is their mean.

        Args:
            regions: classes and attributes of R regions.
            shown: (R,) bool, False for regions that get no words.

        """
        if not self.region_words:
            return None
        class_ids, class_scores, attribute_ids, attribute_scores = regions
        names = np.where(attribute_ids >= 0, attribute_ids.astype(np.int64) + len(self.classes), -1)
        names = np.concatenate([class_ids, names], axis=1)
        good = np.concatenate([class_scores >= self.min_score, attribute_scores >= self.min_score], axis=1)
        scores = np.concatenate([class_scores, attribute_scores], axis=1).astype(np.float32)
        scores = np.where(good & (self._pieces.lengths[names] > 0) & shown[:, None], scores, 0)
        row, column = np.nonzero(scores > 0)
        names, lengths = names[row, column], self._pieces.lengths[names[row, column]]
        weights = scores[row, column] / (scores.sum(axis=1)[row] * lengths)
        return RegionWords(
            token_ids=self._pieces.tokens[ranges(self._pieces.starts[names], lengths)],
            weights=np.repeat(weights, lengths).astype(np.float32),
            counts=np.bincount(row, lengths, len(shown)).astype(np.int64),
        )


class _Pieces:
    """The word pieces of names, by id; id -1 has none.

    Attributes:
        tokens: word pieces of all names, end to end.
        starts: where each name starts in `tokens`.
        lengths: word pieces of each name.
        keys: uint64 hash of the word pieces of each name, a polynomial in `BASE`, so that the key of a phrase follows
            from those of its words.

    """

    BASE = 0x9E3779B97F4A7C15
    """Odd, and far from every ratio of small numbers modulo 2^64, so that short phrases have keys of their own."""

    def __init__(self, names: Sequence[Sequence[int]]) -> None:
        self.tokens = np.fromiter(chain.from_iterable(names), np.int64)
        self.lengths = np.array([*map(len, names), 0], dtype=np.int64)
        self.starts = starts_of(self.lengths)
        self.keys = np.array([*map(self._key, names), 0], dtype=np.uint64)
        self._shifts = np.array([pow(self.BASE, length, 2**64) for length in self.lengths.tolist()], dtype=np.uint64)

    def _key(self, tokens: Sequence[int]) -> int:
        key = 0
        for token in tokens:
            key = (key * self.BASE + token + 1) % 2**64
        return key

    def phrases(self, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and lengths of phrases of several names each, -1 for none: (S, names) -> (S,), (S,)."""
        keys = np.zeros(len(names), dtype=np.uint64)
        for column in names.T:
            keys = keys * self._shifts[column] + self.keys[column]
        return keys, self.lengths[names].sum(axis=1)
