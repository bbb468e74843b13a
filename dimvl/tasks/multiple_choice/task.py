"""Multiple choice: questions with candidates, judged by the matching head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.checkpoints import MATCH
from dimvl.data.annotations import Choice, read_choices
from dimvl.data.matching import match_files
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.costs import AverageExample, DataFacts, average_text
from dimvl.tasks.multiple_choice.config import ChooseConfig, ChooseEvaluation
from dimvl.tasks.multiple_choice.prediction import CHOOSE, ChoiceValidator, evaluate_choices
from dimvl.tasks.multiple_choice.training import ChoiceModule, ChoiceSource
from dimvl.tasks.task import Evaluation, Task, Validator
from dimvl.trained_model import TrainedModel


class MultipleChoice(Task[ChooseConfig]):
    """Multiple choice."""

    name = "choose"
    title = "Fine-tuning for multiple choice"
    evaluation = ChooseEvaluation
    pipeline_tag = "visual-question-answering"
    abilities = (CHOOSE,)
    texts_per_image = 4.0

    def annotation_files(self, config: ChooseConfig) -> dict[str, list[Path]]:
        """Return the files of questions."""
        files = {"choices": config.choices}
        return files if config.validation is None else files | {"validation choices": [config.validation.choices]}

    def read(self, config: ChooseConfig, store: RegionStore) -> list[Choice]:
        """Read the questions whose right candidate is known, and match them with the store.

        Raises:
            UserError: as in `read_choices` and `match_files`; or no question of a file has a right candidate.

        """
        files, unanswered = [], 0
        for path in config.choices:
            choices = read_choices(path).items
            answered = [choice for choice in choices if choice.answer is not None]
            if choices and not answered:
                raise UserError(f"{path}: no question says which candidate is right; add their answers, or omit it")
            unanswered += len(choices) - len(answered)
            files.append((path, answered))
        skipped = {"question without an answer": unanswered}
        return match_files(files, store, config.inputs, config.missing, config.output / MATCH, skipped, config.match)

    def labelled_texts(self, records: Sequence[Choice], processor: Processor) -> list[LabelledText]:
        """Return a text for each candidate, labelled with its place and whether it is right."""
        return [
            LabelledText(
                choice.choice_id, choice.image_ids, text, ((place, float(place == choice.answer)),), choice.times
            )
            for choice in records
            for place, text in enumerate(choice.texts)
        ]

    def capabilities(
        self, config: ChooseConfig, records: Sequence[Choice], initial: Processor | None
    ) -> dict[str, Any]:
        """Record that the model chooses; its head no longer judges a pair alone, so it does not match."""
        return {"chooses": True, "shared_prefix": config.shared_prefix}

    def heads(self, config: ChooseConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request the head of matching."""
        return {"match_head": True}

    def build(
        self, config: ChooseConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples."""
        return ChoiceModule(model, processor), ChoiceSource(texts, images, processor)

    def validator(self, config: ChooseConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by accuracy."""
        return ChoiceValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: ChooseEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Choose for a file of questions and score the choices."""
        return evaluate_choices(trained, store, options, progress)

    def average_example(self, config: ChooseConfig, facts: DataFacts) -> AverageExample:
        """Count all candidates of an image on its shared prefix, or one pair of an image and a candidate."""
        return average_text(facts, config.shared_prefix, lambda texts: {"match_head": texts})
