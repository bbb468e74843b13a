"""What is known of a run's data, and what is assumed where it is not there.

A region store, tokenised texts, a tokenizer, a checkpoint to start from and a file of answers are looked at where they
exist; nothing is made and nothing has to exist. Every assumption is written down.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dimvl.config import AnyConfig, PretrainConfig, VqaConfig
from dimvl.data.answers import read_answers
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.files import read_json
from dimvl.model.convert import bert_arguments
from dimvl.pretrained import MODEL
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import FeatureDtype
from dimvl.tasks.captioning import shared_rows

IMAGES_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class DataOverrides:
    """What the user says about data that is not there; None for what is not said.

    Attributes:
        images: in the store.
        words: mean word pieces of a text.
        texts: mean texts of an image.

    """

    images: int | None = None
    words: float | None = None
    texts: float | None = None


class TextFacts(NamedTuple):
    """Sizes of tokenised texts.

    Attributes:
        words: mean word pieces of a text.
        longest: most word pieces of a text.
        longest_of_image: mean over images of the most word pieces of one of its texts.
        number: mean texts of an image.
        drawn: mean texts of an image of which at most `seq2seq.captions` stand behind one prefix.
        drawn_rows: mean rows that the sampler counts for these.

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
        images: trained on; None where nothing tells.
        regions: mean regions used of an image.
        feature_width: F.
        classes: K of the extractor.
        feature_dtype: as the store keeps features.
        class_columns: classes kept of each region.
        attribute_columns: attributes kept of each region.
        texts: of the tokenised texts.
        vocabulary: V.
        max_positions: token positions of the model.
        answers: A; 0 without an answer head.
        assumed: sentences on what none of the files told.

    """

    images: int | None = None
    regions: float = 0.0
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
        """Take values that nothing tells, and say so."""
        return replace(self, assumed=(*self.assumed, sentence), **values)  # type: ignore[arg-type]


def gather(config: AnyConfig, given: DataOverrides) -> DataFacts:
    """Look at what is there, and assume the rest.

    Args:
        config: of the run.
        given: said by the user; wins over what the files tell.

    Raises:
        UserError: a file is there and damaged.

    """
    facts = _of_texts(config, given, _of_regions(config, given, DataFacts()))
    facts = _of_vocabulary(config, facts)
    if isinstance(config, VqaConfig):
        facts = _of_answers(config, facts)
    return facts


def _of_regions(config: AnyConfig, given: DataOverrides, facts: DataFacts) -> DataFacts:
    most = config.inputs.max_regions
    if all((path / "manifest.json").exists() for path in config.regions):
        store = RegionStore(config.regions)
        manifest = next((folder.manifest for folder in store.folders if len(folder)), store.folders[0].manifest)
        return replace(
            facts,
            images=given.images or len(store) or None,
            regions=_mean_regions(store, most),
            feature_width=store.extractor.feature_width,
            classes=len(store.extractor.classes),
            feature_dtype=manifest.feature_dtype,
            class_columns=manifest.class_columns,
            attribute_columns=manifest.attribute_columns,
        )
    where = " and ".join(map(str, config.regions))
    return facts.assuming(
        f"{where} is not there: {most} regions of each image (inputs.max_regions), features {facts.feature_width} "
        f"wide, {facts.classes} classes, one class kept of each region",
        images=given.images,
        regions=float(most),
    )


def _mean_regions(store: RegionStore, most: int) -> float:
    total = 0
    for start in range(0, len(store), IMAGES_AT_ONCE):
        positions = np.arange(start, min(start + IMAGES_AT_ONCE, len(store)))
        total += int(np.minimum(store.num_regions(positions), most).sum())
    return total / max(1, len(store))


def _of_texts(config: AnyConfig, given: DataOverrides, facts: DataFacts) -> DataFacts:
    behind_one = 10**6 if isinstance(config, VqaConfig) else config.seq2seq.captions
    found = _text_stores(config.cache or config.output / "texts")
    if found is not None:
        facts = replace(facts, images=given.images or len(found.groups) - 1)
        if given.words is None and given.texts is None:
            return replace(facts, texts=_of_store(found, behind_one))
    limit = config.inputs.text_tokens
    words, texts = min(12.0, limit), 5.0 if config.task == "caption" else 1.0
    for value, sentence in (
        (given.words, f"{words:g} word pieces in a text (captions of COCO have 10.5 words; --words says otherwise)"),
        (given.texts, f"texts for each image: {texts:g} (--texts says otherwise)"),
        (None, f"the longest text has inputs.text_tokens, {limit}"),
    ):
        if value is None:
            facts = facts.assuming(f"no tokenised texts: {sentence}")
    words, texts = given.words or words, given.texts or texts
    drawn = min(texts, behind_one)
    rows = drawn * (words + 1)
    return replace(facts, texts=TextFacts(words, float(limit), words, texts, drawn, rows))


def _of_store(texts: TextStore, behind_one: int) -> TextFacts:
    every = slice(0, texts.num_groups)
    (lengths, starts), counts = texts.lengths_of(every), np.diff(texts.groups)
    return TextFacts(
        words=float(lengths.mean()),
        longest=float(lengths.max()),
        longest_of_image=float(np.maximum.reduceat(lengths, starts).mean()),
        number=float(counts.mean()),
        drawn=float(np.minimum(counts, behind_one).mean()),
        drawn_rows=float(shared_rows(texts, behind_one, every).mean()),
    )


def _text_stores(cache: Path) -> TextStore | None:
    """Return the tokenised texts of a folder, of several the largest; None without any."""
    stores: Iterable[TextStore] = (TextStore(path.parent) for path in sorted(cache.glob("*/manifest.json")))
    return max(stores, key=len, default=None)


def _of_vocabulary(config: AnyConfig, facts: DataFacts) -> DataFacts:
    """Tokens and positions: of the run itself or of what it starts from, of a tokenizer, or as many as may be."""
    inputs, bert = config.inputs, config.model.bert
    facts = replace(facts, max_positions=inputs.tag_tokens + inputs.text_tokens + 4)
    begun = [run for run in (config.output, config.initial) if run is not None and (run / MODEL).exists()]
    if begun:
        arguments = read_json(begun[0] / MODEL)
        return replace(facts, vocabulary=arguments["vocabulary"], max_positions=arguments["max_positions"])
    if bert is not None and (bert / "config.json").exists():
        arguments = bert_arguments(bert)
        return replace(facts, vocabulary=arguments["vocabulary"], max_positions=arguments["max_positions"])
    if bert is not None:
        return facts.assuming(
            f"{bert} is not there: a vocabulary of 30,522 and 512 positions, as BERT has",
            vocabulary=30_522,
            max_positions=512,
        )
    for place in (inputs.tokenizer, config.output / TOKENIZER):
        if place is not None and place.exists():
            return replace(facts, vocabulary=len(Tokenizer.load(place)))
    sentence = f"no tokenizer is there: a vocabulary of inputs.vocabulary, {inputs.vocabulary:,}"
    return facts.assuming(sentence, vocabulary=inputs.vocabulary)


def _of_answers(config: VqaConfig, facts: DataFacts) -> DataFacts:
    if (config.output / MODEL).exists():
        return replace(facts, answers=read_json(config.output / MODEL)["answers"])
    if isinstance(config.answers, int):
        return replace(facts, answers=config.answers)
    if config.answers.exists():
        return replace(facts, answers=len(read_answers(config.answers)))
    return facts.assuming(f"{config.answers} is not there: 3,129 answers", answers=3129)


def wanted_heads(config: AnyConfig, facts: DataFacts) -> dict[str, object]:
    """Arguments of the heads that a task asks for."""
    if isinstance(config, VqaConfig):
        return {"answers": facts.answers}
    if isinstance(config, PretrainConfig):
        return {"word_head": True, "match_head": True, "classes": facts.classes}
    return {"word_head": True}
