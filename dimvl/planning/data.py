"""What is known about a run's data, and what is assumed where it does not exist yet.

A region store, tokenised texts, a tokenizer, a checkpoint to start from and a file of answers are read where they
exist; nothing is created and nothing has to exist. Every assumption is recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dimvl.checkpoints import MODEL
from dimvl.config import RunConfig
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.files import read_json
from dimvl.model.convert import bert_arguments
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.base import shared_rows
from dimvl.tasks.costs import DataFacts, TextFacts

IMAGES_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class DataOverrides:
    """Sizes that the user gives for data that does not exist yet; None for those not given.

    Attributes:
        images: number of images in the store.
        words: mean word pieces of a text.
        texts: mean texts of an image.

    """

    images: int | None = None
    words: float | None = None
    texts: float | None = None


def gather(config: RunConfig, given: DataOverrides) -> DataFacts:
    """Read what exists, and assume the rest.

    Args:
        config: of the run.
        given: sizes from the user, which take precedence over the files.

    Raises:
        UserError: a file exists and is damaged.

    """
    facts = _of_texts(config, given, _of_regions(config, given, DataFacts()))
    facts = _of_vocabulary(config, facts)
    answers, assumed = task_of(config).planned_answers(config)
    return facts.assuming(assumed, answers=answers) if assumed else replace(facts, answers=answers)


def _of_regions(config: RunConfig, given: DataOverrides, facts: DataFacts) -> DataFacts:
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
        f"{where} does not exist: {most} regions of each image (inputs.max_regions), features {facts.feature_width} "
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


def _of_texts(config: RunConfig, given: DataOverrides, facts: DataFacts) -> DataFacts:
    task = task_of(config)
    limit_per_prefix = task.texts_per_prefix(config)
    found = _text_stores(config.texts_folder)
    if found is not None:
        facts = replace(facts, images=given.images or len(found.groups) - 1)
        if given.words is None and given.texts is None:
            return replace(facts, texts=_of_store(found, limit_per_prefix))
    limit = config.inputs.text_tokens
    words, texts = min(12.0, limit), task.texts_per_image
    for value, sentence in (
        (given.words, f"{words:g} word pieces in a text (captions of COCO have 10.5 words; change with --words)"),
        (given.texts, f"texts for each image: {texts:g} (change with --texts)"),
        (None, f"the longest text has inputs.text_tokens, {limit}"),
    ):
        if value is None:
            facts = facts.assuming(f"no tokenised texts: {sentence}")
    words, texts = given.words or words, given.texts or texts
    drawn = min(texts, limit_per_prefix)
    rows = drawn * (words + 1)
    return replace(facts, texts=TextFacts(words, float(limit), words, texts, drawn, rows))


def _of_store(texts: TextStore, limit_per_prefix: int) -> TextFacts:
    every = slice(0, texts.num_groups)
    (lengths, starts), counts = texts.lengths_of(every), np.diff(texts.groups)
    return TextFacts(
        words=float(lengths.mean()),
        longest=float(lengths.max()),
        longest_of_image=float(np.maximum.reduceat(lengths, starts).mean()),
        number=float(counts.mean()),
        drawn=float(np.minimum(counts, limit_per_prefix).mean()),
        drawn_rows=float(shared_rows(texts, limit_per_prefix, every).mean()),
    )


def _text_stores(cache: Path) -> TextStore | None:
    """Return the tokenised texts of a folder, the largest of several; None if there are none."""
    stores: Iterable[TextStore] = (TextStore(path.parent) for path in sorted(cache.glob("*/manifest.json")))
    return max(stores, key=len, default=None)


def _of_vocabulary(config: RunConfig, facts: DataFacts) -> DataFacts:
    """Take vocabulary and positions from the run, from what it starts from or from a tokenizer, or assume the limit."""
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
            f"{bert} does not exist: a vocabulary of 30,522 and 512 positions, as BERT has",
            vocabulary=30_522,
            max_positions=512,
        )
    for place in (inputs.tokenizer, config.output / TOKENIZER):
        if place is not None and place.exists():
            return replace(facts, vocabulary=len(Tokenizer.load(place)))
    sentence = f"no tokenizer exists yet: a vocabulary of inputs.vocabulary, {inputs.vocabulary:,}"
    return facts.assuming(sentence, vocabulary=inputs.vocabulary)
