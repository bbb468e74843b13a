"""Visual-concept tags: words for what the detector saw, injected as text.

DiMBERT represents visual information "in textual format" by concepts; which and how many is not told. Our
interpretation: distinct class words, with attributes where known, score at least .3, best first, within a budget of
word pieces, whole words only. Recorded in the configuration and in the export.
"""

from collections.abc import Sequence

import numpy as np

from dimvl.data.tokenizer import Tokenizer


class TagWriter:
    """Regions to the context `[CLS] tags [SEP]`.

    Args:
        tokenizer: the model's tokenizer.
        classes: class names of the extractor, by id.
        attributes: attribute names of the extractor, by id.
        min_score: classes and attributes below it give no word.
        max_tokens: budget of word pieces for all tags; 0 for no tags.

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
        """Rows of the longest context, [CLS] and [SEP] included."""
        return self.max_tokens + 2

    def context(
        self,
        class_ids: np.ndarray,
        class_scores: np.ndarray,
        attribute_ids: np.ndarray,
        attribute_scores: np.ndarray,
    ) -> np.ndarray:
        """Write the context of one image.

        Args:
            class_ids: (R, K) best first, regions best first; -1 for none.
            class_scores: (R, K)
            attribute_ids: (R, A); -1 for none.
            attribute_scores: (R, A)

        Returns:
            (C,) token ids of `[CLS] tags [SEP]`.

        """
        tags: dict[tuple[int, ...], None] = {}
        room = self.max_tokens
        if class_ids.shape[1]:
            known = np.flatnonzero((class_ids[:, 0] >= 0) & (class_scores[:, 0] >= self.min_score))
            attributes = np.where(attribute_scores[known] >= self.min_score, attribute_ids[known], -1)
            for class_id, own in zip(class_ids[known, 0].tolist(), attributes.tolist(), strict=True):
                if not room:
                    break
                words = [*(self.attributes[attribute] for attribute in own if attribute >= 0), self.classes[class_id]]
                tag = tuple(token for word in words for token in word)
                if tag not in tags and len(tag) <= room:
                    tags[tag] = None
                    room -= len(tag)
        return np.array([self.cls, *(token for tag in tags for token in tag), self.sep], dtype=np.int64)
