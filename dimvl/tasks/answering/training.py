"""Training of question answering: the question is the text of a classifier over the answer vocabulary."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.targets import Answers, AnswerTargets, TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.model.model import DimvlModel
from dimvl.objectives import answer_loss
from dimvl.tasks.base import TaskModule
from dimvl.tasks.texts import TextSource

OBJECTIVE = "answers"


def answer_spec(processor: Processor) -> dict[str, TargetSpec]:
    """Return the targets of the only objective."""
    return {OBJECTIVE: TargetSpec(AnswerTargets, len(processor.answers))}


def answer_logits(model: DimvlModel, batch: Batch) -> Tensor:
    """Answer logits of each question: (M, A)."""
    assert model.answer_head is not None
    return model.answer_head(model(batch)[batch.targets[OBJECTIVE].rows])


class VqaModule(TaskModule):
    """Binary cross entropy over the answer vocabulary, summed over answers, as is usual for VQA v2."""

    weights = MappingProxyType({OBJECTIVE: 1.0})

    def __init__(self, model: DimvlModel, processor: Processor) -> None:
        super().__init__(model, processor)
        self.objectives = answer_spec(processor)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, AnswerTargets)
        return {OBJECTIVE: answer_loss(answer_logits(self.model, batch), targets.scores)}


class QuestionSource(TextSource):
    """Questions, or other texts, with a soft score for each of a number of answers.

    Args:
        questions: tokenised questions with soft targets as labels.
        images: reads the region store.
        processor: tokenizer, answers and `shared_prefix`.
        spec: name and targets of the only objective; by default answers.

    """

    kind = "question"

    def __init__(
        self,
        questions: TextStore,
        images: ImageReader,
        processor: Processor,
        spec: Mapping[str, TargetSpec] | None = None,
    ) -> None:
        super().__init__(questions, images, processor)
        [(self.objective, (_, self.answers))] = (spec or answer_spec(processor)).items()

    def target(self, texts: range) -> Answers:
        """Return the soft scores of some questions."""
        scores = np.zeros((len(texts), self.answers), dtype=np.float32)
        for row, text in zip(scores, texts, strict=True):
            ids, values = self.texts.labels(text)
            row[ids] = values
        return Answers(scores)
