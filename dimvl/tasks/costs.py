"""The cost of an average example for `dimvl plan`: its rows and targets, from the sizes of a run's data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dimvl.model.work import Work, example_work
from dimvl.regions.store.format import FeatureDtype


class TextFacts(NamedTuple):
    """Sizes of tokenised texts. Where a text has several images, all of these together count as its image.

    Attributes:
        words: mean word pieces per text.
        longest: word pieces of the longest text.
        longest_of_image: word pieces of the longest text of an image, averaged over images.
        number: mean number of texts per image.
        drawn: mean number of texts of an image that share a prefix, at most `Task.texts_per_prefix`.
        drawn_rows: mean number of rows that the sampler counts for these.

    """

    words: float = 0.0
    longest: float = 0.0
    longest_of_image: float = 0.0
    number: float = 1.0
    drawn: float = 1.0
    drawn_rows: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Sizes that the costs of a run depend on.

    Attributes:
        images: number of training images; None if unknown.
        images_per_prefix: mean number of images in a prefix.
        prefixes_per_image: number of different prefixes divided by `images`.
        regions: mean number of regions in a prefix.
        context: mean rows of `[CLS] tags [SEP]`.
        feature_width: F.
        classes: K of the extractor.
        feature_dtype: type of the features in the store.
        class_columns: classes kept per region.
        attribute_columns: attributes kept per region.
        texts: sizes of the texts.
        vocabulary: V.
        max_positions: token positions of the model.
        answers: A, of answers or labels; 0 without a head for them.
        assumed: one sentence per assumption.

    """

    images: int | None = None
    images_per_prefix: float = 1.0
    prefixes_per_image: float = 1.0
    regions: float = 0.0
    context: float = 2.0
    feature_width: int = 2048
    classes: int = 1600
    feature_dtype: FeatureDtype = "float16"
    class_columns: int = 1
    attribute_columns: int = 0
    texts: TextFacts = field(default_factory=TextFacts)
    vocabulary: int = 0
    max_positions: int = 0
    answers: int = 0
    assumed: tuple[str, ...] = ()

    def assuming(self, sentence: str, **values: object) -> "DataFacts":
        """Return the facts with assumed values, and record the assumption."""
        return replace(self, assumed=(*self.assumed, sentence), **values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class AverageExample:
    """The average example of a run.

    Attributes:
        work: its rows and targets.
        cost: rows that the sampler counts for it, an upper bound.
        per_prefix: number of examples per prefix and epoch.
        prefixes: number of prefixes in an example; above 1 for groups.
        per_micro_batch: work of each micro-batch besides that of its examples, which the sampler does not count.

    """

    work: Work
    cost: float
    per_prefix: float = 1.0
    prefixes: float = 1.0
    per_micro_batch: Work = field(default_factory=Work)


def planned_work(
    facts: DataFacts, texts: float = 1.0, shared_prefix: bool = False, apart: bool = False, **heads: float
) -> Work:
    """Return the work of an example of average lengths; the other arguments are as in `example_work`."""
    return example_work(
        regions=facts.regions,
        context=facts.context,
        texts=texts,
        text_rows=facts.texts.words + 1,
        shared_prefix=shared_prefix,
        apart=apart,
        **heads,
    )


def average_text(
    facts: DataFacts, shared_prefix: bool, heads: Callable[[float], Mapping[str, float]]
) -> AverageExample:
    """Count one text or, with a shared prefix, all texts of an image; `heads`: number of texts -> rows of each head."""
    texts = facts.texts.number if shared_prefix else 1.0
    work = planned_work(facts, texts, shared_prefix, False, **heads(texts))
    return AverageExample(work=work, cost=work.rows, per_prefix=facts.texts.number / texts)
