"""Training of multiple choice: a softmax over the logits that the matching head gives to a question's candidates.

A candidate is the text `question candidate [SEP]`, so that all of it comes after the images and one order of words
serves both attention modes. Pretraining's matching head judges whether a text belongs to its images, and is the start.

Letters: M candidates, Q questions.
"""

import logging
from types import MappingProxyType

import numpy as np
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import Example
from dimvl.data.prefixes import ImageReader, PrefixRegions
from dimvl.data.processor import Processor
from dimvl.data.targets import Candidates, ChoiceTargets, TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.objectives import choice_loss
from dimvl.tasks.base import ImageSource, TaskModule, plain_text

logger = logging.getLogger(__name__)
OBJECTIVE = "choice"


class ChoiceModule(TaskModule):
    """Cross entropy of the right candidate among those of its question, summed over questions."""

    objectives = MappingProxyType({OBJECTIVE: TargetSpec(ChoiceTargets)})
    weights = MappingProxyType({OBJECTIVE: 1.0})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, ChoiceTargets) and self.model.match_head is not None
        logits = self.model.match_head(self.model(batch)[targets.rows])
        return {OBJECTIVE: choice_loss(logits, targets.counts, targets.right)}


class ChoiceSource(ImageSource):
    """One example per image and epoch with a shared prefix; else one per question, which is a group of pairs.

    Args:
        candidates: tokenised candidates; the label of each is its place in its question, scored 1 if it is right.
        images: reads the region store.
        processor: tokenizer and `shared_prefix`.

    """

    def __init__(self, candidates: TextStore, images: ImageReader, processor: Processor) -> None:
        super().__init__(candidates, images)
        self.processor = processor
        starts = np.flatnonzero(candidates.label_ids == 0)  # every text has one label
        self._questions = np.append(starts, len(candidates))
        self._bounds = candidates.groups if processor.shared_prefix else self._questions
        if cut := self._cut_to_equal():
            logger.warning(
                "%d of %d questions have a wrong candidate that equals the right one once both are cut to %d tokens; "
                "raise inputs.text_tokens",
                *(cut, len(starts), candidates.manifest.max_tokens),
            )

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        return len(self._bounds) - 1

    def groups(self, examples: np.ndarray) -> np.ndarray:
        """Return the group of texts (one image) that each example belongs to: (B,) -> (B,)."""
        return np.searchsorted(self.texts.groups, self._bounds[examples], side="right") - 1

    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples."""
        bounds = self._bounds[span.start : span.stop + 1]
        lengths = self.texts.lengths(slice(int(bounds[0]), int(bounds[-1])))
        prefixes = 1 if self.processor.shared_prefix else np.diff(bounds)
        return self.prefix_rows(epoch, span) * prefixes + np.add.reduceat(lengths + 1, bounds[:-1] - bounds[0])

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Build examples of an epoch; without a shared prefix, each candidate of a question has its own."""
        found = zip(self.read(epoch, indexes), indexes.tolist(), strict=True)
        whole = [self.build_from(regions, epoch, index) for regions, index in found]
        return whole if self.processor.shared_prefix else [pair for example in whole for pair in _pairs(example)]

    def build_from(self, regions: PrefixRegions, epoch: int, index: int) -> Example:
        """Build the example of an image's questions, or of one question."""
        first, last = map(int, self._bounds[index : index + 2])
        starts = self._questions[slice(*np.searchsorted(self._questions, (first, last)))]
        texts = range(first, last)
        right = [place for text in texts for place in self._right_of(text)]
        return Example(
            source=f"question {self.texts.text_id(first)}",
            objective=OBJECTIVE,
            prefix=self.images.prefix(regions),
            texts=[plain_text(self.texts.tokens(text), self.processor.tokenizer) for text in texts],
            seq2seq=True,
            target=Candidates(np.diff([*starts, last]).tolist(), right),
        )

    def _right_of(self, text: int) -> list[int]:
        """Return the place of a candidate in its question if it is the right one."""
        places, scores = self.texts.labels(text)
        return places[scores > 0].tolist()

    def _cut_to_equal(self) -> int:
        """Count the questions of which a wrong candidate equals the right one after both were cut."""
        texts, count = self.texts, 0
        if not texts.manifest.texts_cut:
            return 0
        longest = texts.lengths(slice(0, len(texts))) == texts.manifest.max_tokens
        for right in np.flatnonzero(longest & (texts.label_scores > 0)).tolist():
            question = int(np.searchsorted(self._questions, right, side="right"))
            others = range(*map(int, self._questions[question - 1 : question + 1]))
            own = texts.tokens(right)
            count += any(other != right and np.array_equal(texts.tokens(other), own) for other in others)
        return count


def _pairs(example: Example) -> list[Example]:
    """Give each candidate of a question an example in which it and the images see each other."""
    return [
        Example(
            source=example.source,
            objective=OBJECTIVE,
            prefix=example.prefix,
            texts=[text],
            target=None if place else example.target,
        )
        for place, text in enumerate(example.texts)
    ]
