"""Training of question answering: the question is the text of a classifier over the answer vocabulary."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import Example
from dimvl.data.prefixes import ImageReader, Prefix
from dimvl.data.processor import Processor
from dimvl.data.targets import Answers, AnswerTargets, TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.objectives import answer_loss
from dimvl.regions.records import Detections
from dimvl.tasks.base import ImageSource, TaskModule, plain_text

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


def question_example(
    source: str,
    prefix: Prefix,
    questions: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    shared_prefix: bool,
    answers: np.ndarray | None = None,
    objective: str = OBJECTIVE,
) -> Example:
    """Build an example of one question about a prefix, or of several if they share it.

    Args:
        source: the example's name in error messages.
        prefix: images and context.
        questions: token ids of each question.
        tokenizer: the model's tokenizer.
        shared_prefix: whether the prefix does not see the questions.
        answers: (number of questions, A) soft targets.
        objective: name of the objective.

    """
    texts = [plain_text(words, tokenizer) for words in questions]
    target = Answers(answers)
    return Example(source=source, objective=objective, prefix=prefix, texts=texts, seq2seq=shared_prefix, target=target)


class QuestionSource(ImageSource):
    """One example per question and epoch or, with a shared prefix, per image.

    As published, question and image see each other. With a shared prefix, questions are sequence-to-sequence texts:
    the image is computed once for all of them, and each is answered from its last row.

    Args:
        questions: tokenised questions with soft targets as labels.
        images: reads the region store.
        processor: tokenizer, answers and `shared_prefix`.
        spec: name and targets of the only objective; by default answers.

    """

    def __init__(
        self,
        questions: TextStore,
        images: ImageReader,
        processor: Processor,
        spec: Mapping[str, TargetSpec] | None = None,
    ) -> None:
        super().__init__(questions, images)
        self.processor = processor
        [(self.objective, (_, self.answers))] = (spec or answer_spec(processor)).items()

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

    def build_from(self, regions: Detections, epoch: int, index: int) -> Example:
        """Build the example of a question, or of an image's questions."""
        shared = self.processor.shared_prefix
        questions = range(*self.texts.groups[index : index + 2]) if shared else range(index, index + 1)
        scores = np.zeros((len(questions), self.answers), dtype=np.float32)
        for row, question in zip(scores, questions, strict=True):
            ids, values = self.texts.labels(question)
            row[ids] = values
        return question_example(
            f"question {self.texts.text_id(questions[0])}",
            self.images.prefix(regions),
            [self.texts.tokens(question) for question in questions],
            self.processor.tokenizer,
            shared,
            scores,
            self.objective,
        )
