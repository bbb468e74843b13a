"""Visual question answering: classification over an answer vocabulary, as is usual for VQA v2."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.checkpoints import MATCH, MODEL
from dimvl.data.annotations import Question, read_questions
from dimvl.data.answers import answer_ids, answer_vocabulary, label_ids, read_answers, soft_scores
from dimvl.data.matching import Subset, match_files
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.fields import is_blank
from dimvl.files import read_json
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.regions.vocabulary import is_background
from dimvl.showing import short
from dimvl.tasks.answering.config import VqaConfig, VqaEvaluation
from dimvl.tasks.answering.prediction import ANSWER, AccuracyValidator, evaluate_questions
from dimvl.tasks.answering.training import QuestionSource, VqaModule
from dimvl.tasks.answering.zero_shot import ZERO_SHOT
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.costs import AverageExample, DataFacts, average_text
from dimvl.tasks.task import Evaluation, Task, Validator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
EXAMPLES = 3
FEW = 0.5
"""A vocabulary with an answer to no more than this share of the questions is reported by a warning."""


class Answering(Task[VqaConfig]):
    """Visual question answering."""

    name = "vqa"
    title = "Fine-tuning for question answering"
    evaluation = VqaEvaluation
    pipeline_tag = "visual-question-answering"
    abilities = (ANSWER, ZERO_SHOT)

    def annotation_files(self, config: VqaConfig) -> dict[str, list[Path]]:
        """Return question and annotation files."""
        annotations = [file for file in config.annotations if file is not None]
        files = {"questions": config.questions, "annotations": annotations}
        if config.validation is not None:
            files["validation questions"] = [config.validation.questions]
            if config.validation.annotations is not None:
                files["validation annotations"] = [config.validation.annotations]
        return files

    def read(self, config: VqaConfig, store: RegionStore) -> list[Question]:
        """Read the questions that have an answer, and match them with the store.

        Raises:
            UserError: as in `read_questions` and `match_files`; or no question of a file has an answer, or two files
                that have question ids have the same.

        """
        files, unanswered, seen = [], 0, set[str]()
        annotations = config.annotations or [None] * len(config.questions)
        for path, annotation_file in zip(config.questions, annotations, strict=True):
            questions = read_questions(path, annotation_file)
            own = [str(question.question_id) for question in questions if not question.numbered]
            if twice := [question_id for question_id in own if question_id in seen]:
                raise UserError(f"{path} and another file both have question {twice[0]}; renumber the questions")
            seen.update(own)
            answered = [question for question in questions if not all(map(is_blank, question.answers))]
            if questions and not answered:
                raise UserError(f"{path}: no question has an answer; give its answer file in annotations")
            unanswered += len(questions) - len(answered)
            files.append((path, answered))
        skipped = {"question without an answer": unanswered}
        report = config.output / MATCH
        subset = Subset(config.subset, config.seed, "question", lambda question: question)
        return match_files(files, store, config.inputs, config.missing, report, skipped, config.match, subset)

    def labelled_texts(self, records: Sequence[Question], processor: Processor) -> list[LabelledText]:
        """Label each question with the soft scores of its answers in the vocabulary.

        Raises:
            UserError: no question has an answer of the vocabulary.

        """
        ids = answer_ids(processor.answers)
        texts = [
            LabelledText(q.question_id, q.image_ids, q.text, label_ids(soft_scores(q.answers), ids), q.times)
            for q in records
        ]
        labelled, kept = sum(bool(text.labels) for text in texts), len(processor.answers)
        if not labelled:
            examples = ", ".join(map(short, dict.fromkeys(answer for q in records[:EXAMPLES] for answer in q.answers)))
            raise UserError(
                f"none of the {len(texts):,} questions has one of the {kept:,} answers of the run "
                f"({', '.join(map(short, processor.answers[:EXAMPLES]))}, ...); people answered {examples}, ...; give "
                "the list of answers of these questions, or a number"
            )
        level = logging.INFO if labelled > FEW * len(texts) else logging.WARNING
        logger.log(
            level,
            "%d of %d questions (%.0f%%) have an answer among the %d kept; the others teach only that these are wrong",
            *(labelled, len(texts), 100 * labelled / len(texts), kept),
        )
        return texts

    def capabilities(self, config: VqaConfig, records: Sequence[Question], initial: Processor | None) -> dict[str, Any]:
        """Choose the answer vocabulary."""
        if isinstance(config.answers, Path):
            answers = read_answers(config.answers)
            if is_background(answers[0]):
                logger.warning(
                    "%s: its first answer is %r, which usually stands for no answer; it stays answer 0 and the others "
                    "keep their numbers, so remove it only if the numbers of a published list do not count it",
                    *(config.answers, answers[0]),
                )
        else:
            answers = answer_vocabulary([question.answers for question in records], config.answers)
        return {"answers": tuple(answers), "shared_prefix": config.shared_prefix}

    def heads(self, config: VqaConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request an answer head."""
        return {"answers": answers}

    def build(
        self, config: VqaConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples."""
        return VqaModule(model, processor), QuestionSource(texts, images, processor)

    def validator(self, config: VqaConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by official accuracy."""
        return AccuracyValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: VqaEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Answer a question file and score the answers."""
        return evaluate_questions(trained, store, options, progress)

    def average_example(self, config: VqaConfig, facts: DataFacts) -> AverageExample:
        """Count one question, or all questions of an image on its shared prefix."""
        return average_text(facts, config.shared_prefix, lambda texts: {"answer_head": texts})

    def planned_answers(self, config: VqaConfig) -> tuple[int, str]:
        """Return the number of answers of the run, the configuration or its answer list."""
        if (config.output / MODEL).exists():
            return int(read_json(config.output / MODEL)["answers"]), ""
        if isinstance(config.answers, int):
            return config.answers, ""
        if config.answers.exists():
            return len(read_answers(config.answers)), ""
        return 3129, f"{config.answers} does not exist: 3,129 answers"
