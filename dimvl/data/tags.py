"""Visual-concept tags: words for what the detector saw, added to the input as text.

DiMBERT represents visual information "in textual format" by concepts; the paper does not say which and how many. Our
interpretation: distinct class words, with attributes if known, with a score of at least .3, best first, within a budget
of word pieces, whole words only. Recorded in the configuration and in the export.
"""

from collections.abc import Iterator, Sequence

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

    """

    def __init__(
        self, tokenizer: Tokenizer, classes: Sequence[str], attributes: Sequence[str], min_score: float, max_tokens: int
    ) -> None:
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
        class_ids, class_scores, attribute_ids, attribute_scores = regions
        attributes = np.where(attribute_scores >= self.min_score, attribute_ids, -1)
        if class_ids.shape[1]:
            none = class_ids[:, 0] < 0
            classes = np.where(class_scores[:, 0] >= self.min_score, class_ids[:, 0], -1)
        else:
            none, classes = np.ones(len(attributes), bool), np.full(len(attributes), -1)
        tags: dict[tuple[int, ...], None] = {}
        for row in np.flatnonzero(none | (classes >= 0)):
            words = [self.attributes[attribute] for attribute in attributes[row].tolist() if attribute >= 0]
            # Names of a region without a class are words of their own; of one with a class, they describe it.
            named = words if none[row] else [sum((*words, self.classes[classes[row]]), ())]
            for tag in named:
                if tag not in tags and len(tag) <= room:
                    tags[tag] = None
                    room -= len(tag)
            if room < 1:
                break
        return (token for tag in tags for token in tag)
