"""The sizes of a run's data, read from files where they exist and assumed where they do not.

The files are the region stores, tokenised texts, the tokenizer, the checkpoint to start from and the answer list.
Nothing is written, and every assumption is recorded.
"""

from dataclasses import dataclass, replace

import numpy as np

from dimvl.checkpoints import MODEL
from dimvl.config import RunConfig
from dimvl.data.prefixes import ImageReader, PrefixImages
from dimvl.data.processor import tag_writer
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.files import RESTORE
from dimvl.model.convert import bert_arguments, check_sizes
from dimvl.model.model import read_arguments
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.base import shared_rows
from dimvl.tasks.costs import DataFacts, TextFacts
from dimvl.training.texts import known_texts

IMAGES_AT_ONCE = 1_000_000
SAMPLE = 20_000
"""Prefixes whose tags are counted."""


@dataclass(frozen=True, kw_only=True)
class DataOverrides:
    """Sizes set by the user, which take precedence over files and assumptions; None where not set.

    Attributes:
        images: number of images in the store.
        words: mean word pieces of a text.
        texts: mean number of texts of an image.

    """

    images: int | None = None
    words: float | None = None
    texts: float | None = None


def gather(config: RunConfig, overrides: DataOverrides) -> DataFacts:
    """Return the sizes of a run's data.

    Raises:
        UserError: a file is damaged.

    """
    facts = _of_vocabulary(config, _of_texts(config, overrides, _of_regions(config, overrides, DataFacts())))
    facts = replace(facts, context=facts.context + config.soft_rows)
    answers, assumed = task_of(config).planned_answers(config)
    return facts.assuming(assumed, answers=answers) if assumed else replace(facts, answers=answers)


def _of_regions(config: RunConfig, overrides: DataOverrides, facts: DataFacts) -> DataFacts:
    limit = config.inputs.max_regions
    if all((path / "manifest.json").exists() for path in config.regions):
        store = RegionStore(config.regions)
        manifest = next((folder.manifest for folder in store.folders if len(folder)), store.folders[0].manifest)
        if config.inputs.tag_tokens and _tokenizer(config) is None:
            facts = facts.assuming("no tokenizer exists yet: every word of a tag is one word piece")
        every = PrefixImages(np.arange(len(store)), np.ones(len(store), dtype=np.int64))
        return replace(
            facts,
            context=_mean_context(config, store, every),
            images=overrides.images or len(store) or None,
            regions=_mean_regions(store, limit),
            feature_width=store.extractor.feature_width,
            classes=len(store.extractor.classes),
            feature_dtype=manifest.feature_dtype,
            class_columns=manifest.class_columns,
            attribute_columns=manifest.attribute_columns,
        )
    where = " and ".join(map(str, config.regions))
    budget = config.inputs.tag_tokens
    tags = f", {budget} word pieces of tags (inputs.concept_tokens)" if budget else ""
    return facts.assuming(
        f"{where} does not exist: {limit} regions per image (inputs.max_regions), features of width "
        f"{facts.feature_width}, {facts.classes} classes, one class kept per region{tags}",
        images=overrides.images,
        regions=float(limit),
        context=2.0 + budget * (1 - config.inputs.concept_dropout),
    )


def _mean_regions(store: RegionStore, limit: int) -> float:
    total = 0
    for start in range(0, len(store), IMAGES_AT_ONCE):
        positions = np.arange(start, min(start + IMAGES_AT_ONCE, len(store)))
        total += int(np.minimum(store.num_regions(positions), limit).sum())
    return total / max(1, len(store))


def _mean_context(config: RunConfig, store: RegionStore, images: PrefixImages) -> float:
    """Mean rows of the contexts of up to `SAMPLE` prefixes, evenly spaced."""
    inputs, names = config.inputs, [*store.extractor.classes, *store.extractor.attributes]
    if not len(images) or not names or not inputs.tag_tokens:
        return 2.0
    tokenizer = _tokenizer(config) or Tokenizer.train(names, inputs.vocabulary)
    reader = ImageReader(store, tag_writer(tokenizer, store.extractor, inputs), inputs.max_regions)
    some = images[np.linspace(0, len(images) - 1, min(len(images), SAMPLE)).astype(np.int64)]
    tags = float((reader.rows(some) - reader.num_regions(some)).mean()) - 2
    return 2 + tags * (1 - inputs.concept_dropout)


def _tokenizer(config: RunConfig) -> Tokenizer | None:
    """Return the tokenizer of a run; None if it is still to be trained, or does not exist."""
    folders = [config.output, *(folder for folder in (config.initial, config.model.bert) if folder is not None)]
    given = [] if config.inputs.tokenizer is None else [config.inputs.tokenizer]
    places = [*given, *(folder / TOKENIZER for folder in folders)]
    return next((Tokenizer.load(place) for place in places if place.exists()), None)


def _of_texts(config: RunConfig, overrides: DataOverrides, facts: DataFacts) -> DataFacts:
    task = task_of(config)
    limit_per_prefix = task.texts_per_prefix(config)
    if (own := known_texts(config)) is not None:
        facts = _of_prefixes(config, overrides, facts, own)
        if overrides.words is None and overrides.texts is None:
            return replace(facts, texts=_of_store(own, limit_per_prefix))
    else:
        facts = _of_records(config, facts)
        drawn = getattr(config, "subset", None)
        if drawn is not None and overrides.images is None and facts.images is not None and drawn < facts.images:
            facts = facts.assuming(f"subset {drawn:,} is about as many images", images=drawn)
    limit = config.inputs.text_tokens
    words, texts = min(12.0, limit), task.texts_per_image
    for value, sentence in (
        (overrides.words, f"{words:g} word pieces per text (COCO captions have 10.5 words; change with --words)"),
        (overrides.texts, f"texts per image: {texts:g} (change with --texts)"),
        (None, f"the longest text has {limit} tokens (inputs.text_tokens)"),
    ):
        if value is None:
            facts = facts.assuming(f"no tokenised texts: {sentence}")
    words, texts = overrides.words or words, overrides.texts or texts
    drawn = min(texts, limit_per_prefix)
    return replace(facts, texts=TextFacts(words, float(limit), words, texts, drawn, drawn * (words + 1)))


def _of_prefixes(config: RunConfig, overrides: DataOverrides, facts: DataFacts, texts: TextStore) -> DataFacts:
    images, members, regions = len(texts.image_offsets) - 1, texts.group_images, facts.regions
    count, context = texts.num_groups if members is None else len(members), facts.context
    if members is not None and all((path / "manifest.json").exists() for path in config.regions):
        store = RegionStore(config.regions)
        positions = store.positions(texts.image_ids())
        regions = float(np.minimum(store.num_regions(positions), config.inputs.max_regions)[members].mean())
        assert texts.group_offsets is not None
        context = _mean_context(config, store, PrefixImages(positions[members], np.diff(texts.group_offsets)))
    return replace(
        facts,
        context=context,
        images=overrides.images or images,
        images_per_prefix=count / texts.num_groups,
        prefixes_per_image=texts.num_groups / images,
        regions=regions * count / texts.num_groups,
    )


def _of_records(config: RunConfig, facts: DataFacts) -> DataFacts:
    """Assume as many images in a record as the configuration allows, if it does not leave that to the default."""
    images = config.inputs.max_images
    if images == type(config.inputs).model_fields["max_images"].default:
        return facts
    room = max(0, (config.inputs.tag_tokens - (images - 1)) // images)
    return facts.assuming(
        f"no tokenised texts: {images} images in each record (inputs.max_images)",
        context=1 + images * (1 + min(facts.context - 2, room)) if room else 2.0,
        images_per_prefix=float(images),
        prefixes_per_image=1 / images,
        regions=facts.regions * images,
    )


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


def _of_vocabulary(config: RunConfig, facts: DataFacts) -> DataFacts:
    """Read vocabulary and positions from the run, the model that it starts from or a tokenizer, or assume them."""
    inputs, bert = config.inputs, config.model.bert
    facts = replace(facts, max_positions=inputs.tag_tokens + inputs.text_tokens + 4)
    started = [run for run in (config.output, config.initial) if run is not None and (run / MODEL).exists()]
    if started or (bert is not None and (bert / "config.json").exists()):
        arguments = read_arguments(started[0] / MODEL, RESTORE) if started or bert is None else bert_arguments(bert)
        if bert is not None and not started:
            check_sizes(bert, arguments, config.model.model_dump())
        return replace(facts, vocabulary=arguments["vocabulary"], max_positions=arguments["max_positions"])
    if bert is not None:
        sentence = f"{bert} does not exist: a vocabulary of 30,522 and 512 positions, as in BERT"
        return facts.assuming(sentence, vocabulary=30_522, max_positions=512)
    for place in (inputs.tokenizer, config.output / TOKENIZER):
        if place is not None and place.exists():
            return replace(facts, vocabulary=len(Tokenizer.load(place)))
    sentence = f"no tokenizer exists yet: a vocabulary of {inputs.vocabulary:,} (inputs.vocabulary)"
    return facts.assuming(sentence, vocabulary=inputs.vocabulary)
