"""Visual question answering: the question as text, a classifier over the answer vocabulary."""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from dimvl.data.batch import AnswerTargets, Batch
from dimvl.data.examples import Example, ImageReader, Prefix
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.objectives import answer_loss
from dimvl.regions.records import Detections
from dimvl.tasks.base import ImageSource, Task, plain_text

OBJECTIVE = "answers"


class VqaTask(Task):
    """Binary cross entropy over the answer vocabulary, summed over answers, as is usual for VQA v2."""

    name = "vqa"
    objectives = MappingProxyType({OBJECTIVE: AnswerTargets})
    weights = MappingProxyType({OBJECTIVE: 1.0})

    def logits(self, batch: Batch) -> Tensor:
        """Answer logits of each question: (M, A)."""
        rows, targets = self.model(batch), batch.targets[OBJECTIVE]
        assert isinstance(targets, AnswerTargets) and self.model.answer_head is not None
        return self.model.answer_head(rows[targets.rows])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, AnswerTargets)
        return {OBJECTIVE: answer_loss(self.logits(batch), targets.scores)}

    @torch.inference_mode()
    def probabilities(self, batch: Batch) -> Tensor:
        """Probability of each answer by itself: (M, A)."""
        return self.logits(batch).float().sigmoid()


def question_example(
    source: str,
    prefix: Prefix,
    questions: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    shared_prefix: bool,
    answers: np.ndarray | None = None,
) -> Example:
    """Questions on one prefix: one, or with a shared prefix any number.

    Args:
        source: for messages.
        prefix: image and context.
        questions: token ids of each.
        tokenizer: the model's tokenizer.
        shared_prefix: the questions see the prefix, and it does not see them.
        answers: (number of questions, A) soft targets.

    """
    texts = [plain_text(words, tokenizer) for words in questions]
    return Example(
        source=source, objective=OBJECTIVE, prefix=prefix, texts=texts, seq2seq=shared_prefix, answers=answers
    )


class QuestionSource(ImageSource):
    """One example per question and epoch or, with a shared prefix, per image.

    As published, question and picture see each other. With a shared prefix a question is a sequence-to-sequence text:
    the picture is computed once for all its questions, and each question is answered from its last row.

    Args:
        questions: tokenised questions with soft targets as labels.
        images: reads the region store.
        processor: tokenizer, answers and `shared_prefix`.

    """

    def __init__(self, questions: TextStore, images: ImageReader, processor: Processor) -> None:
        super().__init__(questions, images)
        self.processor = processor

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        return super().__len__() if self.processor.shared_prefix else len(self.texts)

    def groups(self, examples: np.ndarray) -> np.ndarray:
        """Which image of the texts examples (B,) are of: (B,)."""
        if self.processor.shared_prefix:
            return examples
        return np.searchsorted(self.texts.groups, examples, side="right") - 1

    def costs(self, epoch: int, some: slice) -> np.ndarray:
        """Upper bound of the rows of some examples."""
        if not self.processor.shared_prefix:
            return self.prefix_rows(some) + self.texts.lengths(some) + 1
        lengths, starts = self.texts.lengths_of(some)
        return self.prefix_rows(some) + np.add.reduceat(lengths + 1, starts)

    def build_from(self, regions: Detections, epoch: int, index: int) -> Example:
        """Build the example of a question, or of an image's questions."""
        shared = self.processor.shared_prefix
        questions = range(*self.texts.groups[index : index + 2]) if shared else range(index, index + 1)
        scores = np.zeros((len(questions), len(self.processor.answers)), dtype=np.float32)
        for row, question in zip(scores, questions, strict=True):
            ids, values = self.texts.labels(question)
            row[ids] = values
        return question_example(
            f"question {self.texts.text_ids[questions[0]]}",
            self.images.prefix(regions),
            [self.texts.tokens(question) for question in questions],
            self.processor.tokenizer,
            shared,
            scores,
        )
