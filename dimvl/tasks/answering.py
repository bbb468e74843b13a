"""Visual question answering: the question as text, bidirectional, a classifier over the answer vocabulary."""

from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from dimvl.data.batch import AnswerTargets, Batch
from dimvl.data.documents import Document, ImageReader, Prefix
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.objectives import answer_loss
from dimvl.tasks.base import Task, plain_text

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
        return self.model.answer_head(rows[targets.rows], rows[targets.text_rows])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, AnswerTargets)
        return {OBJECTIVE: answer_loss(self.logits(batch), targets.scores)}

    @torch.inference_mode()
    def probabilities(self, batch: Batch) -> Tensor:
        """Probability of each answer by itself: (M, A)."""
        return self.logits(batch).float().sigmoid()


def question_document(
    source: str, prefix: Prefix, words: np.ndarray, tokenizer: Tokenizer, answers: np.ndarray | None = None
) -> Document:
    """A question on a prefix; `answers` (A,) are its soft targets."""
    text = plain_text(words, tokenizer)
    return Document(source=source, objective=OBJECTIVE, prefix=prefix, texts=[text], answers=answers)


class QuestionSource:
    """One document per question and epoch.

    Args:
        questions: tokenised questions with soft targets as labels.
        images: reads the region store.
        tokenizer: the model's tokenizer.
        answers: size A of the answer vocabulary.

    """

    def __init__(self, questions: TextStore, images: ImageReader, tokenizer: Tokenizer, answers: int) -> None:
        self.questions, self.images, self.tokenizer, self.answers = questions, images, tokenizer, answers
        by_group = images.store.positions([image_id.decode() for image_id in questions.image_ids])
        self.positions = by_group[questions.group_of()]

    def __len__(self) -> int:
        return len(self.questions)

    def costs(self, epoch: int) -> np.ndarray:
        """(D,) upper bound of rows."""
        return self.images.rows(self.positions) + self.questions.lengths() + 1

    def build(self, epoch: int, index: int) -> Document:
        """Build the document of a question."""
        prefix = self.images.prefix(self.images.read(int(self.positions[index])))
        scores = np.zeros(self.answers, dtype=np.float32)
        ids, values = self.questions.labels(index)
        scores[ids] = values
        words = self.questions.tokens(index).astype(np.int64)
        return question_document(f"question {self.questions.text_ids[index]}", prefix, words, self.tokenizer, scores)
