"""What tasks share that predict something for each text about images: an answer, a label, a region.

As published, images and text see each other. With a shared prefix, texts are sequence-to-sequence texts: images are
computed once for all of their texts, and each text is judged from its last row.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dimvl.data.batch import Batch
from dimvl.data.examples import Example
from dimvl.data.prefixes import ImageReader, Prefix, PrefixRegions
from dimvl.data.processor import Processor
from dimvl.data.targets import TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.tasks.base import ImageSource, plain_text
from dimvl.trained_model import TrainedModel


def text_example(
    source: str,
    objective: str,
    prefix: Prefix,
    texts: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    shared_prefix: bool,
    target: Any = None,
) -> Example:
    """Build an example of one text about a prefix, or of several if they share it.

    Args:
        source: the example's name in error messages.
        objective: name of the objective.
        prefix: images and context.
        texts: token ids of each text.
        tokenizer: the model's tokenizer.
        shared_prefix: whether the prefix does not see the texts.
        target: the payload of the objective's kind of target; None for a prediction.

    """
    plain = [plain_text(words, tokenizer) for words in texts]
    return Example(source=source, objective=objective, prefix=prefix, texts=plain, seq2seq=shared_prefix, target=target)


def text_batch(
    trained: TrainedModel,
    prefixes: Sequence[Prefix],
    texts: Sequence[np.ndarray],
    objectives: Mapping[str, TargetSpec],
) -> Batch:
    """Make the batch of a text for each prefix, to predict the only objective.

    If the model's prefixes do not depend on the text, consecutive equal prefixes (the same object) are computed once.
    """
    [objective], processor = objectives, trained.processor
    examples = [
        text_example("input", objective, prefix, own, processor.tokenizer, processor.shared_prefix)
        for prefix, own in trained.by_prefix(prefixes, texts)
    ]
    return trained.batch(examples, objectives)


class TextSource(ImageSource):
    """One example per text and epoch or, with a shared prefix, per group of texts about the same images.

    Args:
        texts: tokenised texts with what is to be predicted as labels.
        images: reads the region store.
        processor: tokenizer and `shared_prefix`.

    Attributes:
        objective: name of the only objective.
        kind: what a text is called in messages.

    """

    objective: str
    kind: str

    def __init__(self, texts: TextStore, images: ImageReader, processor: Processor) -> None:
        super().__init__(texts, images)
        self.processor = processor

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        return super().__len__() if self.processor.shared_prefix else len(self.texts)

    def groups(self, examples: np.ndarray) -> np.ndarray:
        """Return the group of texts (one image) that each example belongs to: (B,) -> (B,)."""
        if self.processor.shared_prefix:
            return examples
        return np.searchsorted(self.texts.groups, examples, side="right") - 1

    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples."""
        if not self.processor.shared_prefix:
            return self.prefix_rows(epoch, span) + self.texts.lengths(span) + 1
        lengths, starts = self.texts.lengths_of(span)
        return self.prefix_rows(epoch, span) + np.add.reduceat(lengths + 1, starts)

    def build_from(self, regions: PrefixRegions, epoch: int, index: int) -> Example:
        """Build the example of a text, or of the texts of an image."""
        shared = self.processor.shared_prefix
        texts = range(*self.texts.groups[index : index + 2]) if shared else range(index, index + 1)
        return text_example(
            f"{self.kind} {self.texts.text_id(texts[0])}",
            self.objective,
            self.images.prefix(regions),
            [self.texts.tokens(text) for text in texts],
            self.processor.tokenizer,
            shared,
            self.target(texts),
        )

    @abstractmethod
    def target(self, texts: range) -> Any:
        """Return the payload of the objective's kind of target for some texts."""
