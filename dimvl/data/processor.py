"""Everything between images and words on one side and the model on the other; saved with every checkpoint."""

import logging
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import Field, create_model

from dimvl.config import REGION_WORDS, TAGS, Concepts, InputsConfig, Variant, rename_tag_keys
from dimvl.data.prefixes import ImageReader
from dimvl.data.tags import TagWriter
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import RESTORE, Strict, check_values, read_json, write_json
from dimvl.files.reading import SMALL
from dimvl.regions.records import Extractor
from dimvl.regions.store import RegionStore

logger = logging.getLogger(__name__)
FILE = "processor.json"
Count = Annotated[int, Field(ge=0, le=2**20)]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Settings that a model cannot be used without.

    Attributes:
        tokenizer: the model's tokenizer.
        extractor: the extractor of the regions that it was trained with.
        max_regions: highest-scoring regions used of each image; 0 for none.
        concepts: where the model sees the names of regions, as in the configuration.
        concept_tokens: budget of word pieces for tags.
        concept_score: lowest score of a class or attribute that gives a word.
        text_tokens: longest text in word pieces.
        variant: variant of the sequence-to-sequence language model.
        answers: the answer vocabulary in the order of the answer head; empty without one.
        labels: the labels to classify by, in the order of the label head; empty without one.
        several_labels: whether any number of labels fit an input; otherwise exactly one does.
        max_images: largest number of images in a prefix.
        times: whether the model uses the times of images.
        shared_prefix: whether questions, and texts to match or to classify, see their prefix but not the other way
            round.
        captions: whether it was trained to caption.
        matches: whether it was trained to judge whether a text belongs to an image.
        masked_words: whether it was trained to predict masked words; as in models saved before version 0.2 if it both
            captions and matches.
        aligns: whether it was trained to compare images and texts that are each encoded alone.
        chooses: whether it was trained to choose among texts.
        grounds: whether it was trained to find the region that a phrase refers to.
        prompt: soft rows at the end of each context, see `dimvl/config/adapter.py`.
        class_prompt: soft rows before the name of each label, if images are compared with these names.
        task: the task it was trained on, a key of `dimvl.tasks.CONFIGS`; empty in models saved before version 0.2.

    """

    tokenizer: Tokenizer
    extractor: Extractor
    max_regions: Count
    concepts: Concepts
    concept_score: Annotated[float, Field(ge=0, le=1)]
    text_tokens: Count
    concept_tokens: Count = 0
    variant: Variant = "causal"
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    several_labels: bool = False
    shared_prefix: bool = False
    captions: bool = False
    matches: bool = False
    masked_words: bool = False
    aligns: bool = False
    chooses: bool = False
    grounds: bool = False
    max_images: Annotated[Count, Field(ge=1)] = 4
    times: bool = False
    prompt: Count = 0
    class_prompt: Count = 0
    task: str = ""

    @property
    def tag_tokens(self) -> int:
        """Budget of word pieces for tags; 0 where there are none."""
        return self.concept_tokens if self.concepts in TAGS else 0

    @property
    def region_words(self) -> bool:
        """Whether the row of a region has the words of its names."""
        return self.concepts in REGION_WORDS

    @property
    def tags(self) -> TagWriter:
        """The writer of contexts and of the words of regions."""
        return tag_writer(self.tokenizer, self.extractor, self, self.prompt)

    @property
    def text_start(self) -> int:
        """Position of a text's BOS row: right after the context budget."""
        return self.tag_tokens + 2

    @property
    def max_positions(self) -> int:
        """Token positions that the model needs: context, BOS row, words and final [SEP]."""
        return self.text_start + self.text_tokens + 2

    def reader(self, store: RegionStore, whole_budget: bool = False) -> ImageReader:
        """Return the reader of prefixes from a region store; `whole_budget` as in `ImageReader`."""
        return ImageReader(store, self.tags, self.max_regions, self.times, whole_budget)

    def without_recipe(self) -> "Processor":
        """Return a copy that does not name the files of its extractor, which are of use on their own machine only."""
        return replace(self, extractor=replace(self.extractor, recipe={}))

    def save(self, folder: Path) -> None:
        """Write `processor.json` and the tokenizer's files."""
        self.tokenizer.save(folder)
        values = {name: value for name, value in self.__dict__.items() if name not in ("tokenizer", "extractor")}
        write_json(folder / FILE, {**values, "extractor": asdict(self.extractor)})

    @classmethod
    def load(cls, folder: Path) -> "Processor":
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing or not of this form.

        """
        values = rename_tag_keys(read_json(folder / FILE, SMALL))
        if isinstance(values, dict) and "masked_words" not in values and values.get("matches") is True:
            values["masked_words"] = values.get("captions", False)
        return cls(tokenizer=Tokenizer.load(folder), **vars(check_values(values, _form(), folder / FILE, RESTORE)))

    def check_extractor(self, extractor: Extractor, place: str) -> None:
        """Refuse regions that the model cannot take; warn about those selected with other thresholds.

        Raises:
            UserError: they come from another extractor than in training; see `Extractor.conflict`.

        """
        own = self.extractor
        if conflict := own.conflict(extractor):
            remedy = "extract the images again with that detector"
            if own.differs_in_names(extractor):
                remedy = "give a store that `dimvl name` made with the same concepts"
            raise UserError(
                f"{place} was made by {extractor.name} ({conflict}) but the model was trained with {own.name}; "
                f"{remedy}, or fine-tune with new_extractor=true"
            )
        if deviations := own.deviations(extractor):
            logger.warning("%s has regions selected differently from training: %s", place, "; ".join(deviations))


def tag_writer(
    tokenizer: Tokenizer, extractor: Extractor, inputs: Processor | InputsConfig, prompt: int = 0
) -> TagWriter:
    """Return the writer of tags, words and soft rows for the names of an extractor."""
    return TagWriter(
        tokenizer,
        extractor.classes,
        extractor.attributes,
        inputs.concept_score,
        inputs.tag_tokens,
        concepts="called" in extractor.parts,
        region_words=inputs.region_words,
        prompt=prompt,
    )


def _form() -> type[Strict]:
    """The form of `processor.json`: the fields of `Processor` except the tokenizer."""
    hints = get_type_hints(Processor, include_extras=True)
    own: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is MISSING else field.default)
        for field in fields(Processor)
        if field.name != "tokenizer"
    }
    return create_model("Processor", __base__=Strict, **own)
