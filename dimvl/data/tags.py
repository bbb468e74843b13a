"""Visual-concept tags: words for what the detector saw, added to the input as text.

DiMBERT represents visual information "in textual format" by concepts; the paper does not say which and how many. Our
interpretation: distinct class words, with attributes if known, with a score of at least .3, best first, within a budget
of word pieces, whole words only. Recorded in the configuration and in the export.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from dimvl.data.tokenizer import Tokenizer

Named = Sequence[np.ndarray]
"""Class ids (R, K) and scores (R, K), attribute ids (R, A) and scores (R, A), best first; ids are -1 for none."""


class TagWriter:
    """Turns regions into the context `[CLS] tags of image 1 [SEP] tags of image 2 [SEP] ...`.

    Args:
        tokenizer: the model's tokenizer.
        classes: class names of the extractor, by id.
        attributes: attribute names of the extractor, by id.
        min_score: classes and attributes below this score give no word.
        max_tokens: budget of word pieces for all tags, shared equally by the images; 0 for no tags.
        concepts: whether the attributes, or the classes if there are none, are concepts from another model. Several are
            true of a region, and each is a tag of its own.

    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        attributes: Sequence[str],
        min_score: float,
        max_tokens: int,
        concepts: bool = False,
    ) -> None:
        self.concepts = concepts
        self.classes = [tuple(tokens) for tokens in tokenizer.encode_all(classes)]
        self.attributes = [tuple(tokens) for tokens in tokenizer.encode_all(attributes)]
        self.min_score = min_score
        self.max_tokens = max_tokens
        self.cls, self.sep = tokenizer.cls, tokenizer.sep

    @property
    def max_length(self) -> int:
        """Rows of the longest context, including [CLS] and [SEP]."""
        return self.max_tokens + 2

    def context(self, images: Sequence[Named]) -> np.ndarray:
        """Write the context of a prefix.

        The separators between images count towards the budget. If less than one word piece is left for each image,
        there are no tags, and the context is `[CLS] [SEP]`.

        Args:
            images: classes and attributes of the regions of each image, best region first.

        Returns:
            (C,) token ids, C at most `max_length`.

        """
        room = (self.max_tokens - (len(images) - 1)) // len(images)
        tokens = [self.cls]
        for regions in images if room > 0 else images[:1]:
            tokens += [*self._tags(regions, room), self.sep]
        return np.array(tokens, dtype=np.int64)

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
