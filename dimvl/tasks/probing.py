"""Pairwise probes of a model: how often the true caption of an image scores above a false one.

A model is scored by all that it was trained for:

- `match`: the logit of the matching head.
- `cosine`: the similarity of image and text, each embedded alone.
- `likelihood`: the log-probability of the text, as the caption of the image; the sum over its tokens.

Beside each score stands `text_only`: the same score where the model sees no region and no tag, so that only the text
can tell caption and foil apart. Many probes fall to such models, by foils that are odd or ungrammatical (Hsieh et al.,
"SugarCrepe", NeurIPS 2023), so a score means something only as far as it is above this one. A sum over tokens makes
long texts improbable; where foils are longer, the text-only score of `likelihood` shows how much that gives away. Since
models see images without regions rarely in training, `text_only` of `match` and `cosine` may be worse than what a
model that was trained on texts alone would reach; that of `likelihood` is the prior of the model's own language model.

Equal scores count as wrong, and equal pairs of image and text have one score, so rounding decides nothing. For two
images with a caption each (Winoground), the text score is right if each image prefers its caption, the image score if
each caption prefers its image, the group score if both are; without an image all three are wrong by definition.

Letters: M pairs of image and text, P distinct ones, T distinct texts.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.config import EvaluationOptions
from dimvl.data.annotations import Id, ImageKey, Probe, read_probes
from dimvl.data.annotations.probes import image_records
from dimvl.data.examples import Example
from dimvl.data.matching import match_file
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.processor import Processor
from dimvl.data.sampler import in_order
from dimvl.data.targets import CaptionTargets, TargetSpec
from dimvl.errors import UserError
from dimvl.metrics.measures import measures
from dimvl.metrics.predictions import official_images
from dimvl.regions.store import RegionStore
from dimvl.showing import counted, short
from dimvl.tasks.base import causal_text
from dimvl.tasks.inference import ROW_BUDGET, finite, pair_batches
from dimvl.tasks.pretraining.matching import match_logits
from dimvl.tasks.retrieval.prediction import embed_images, embed_texts, similarity
from dimvl.tasks.task import Evaluation
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
WORDS_AT_ONCE = 1024  # whose probabilities over the vocabulary are in memory at once


@torch.inference_mode()
def log_likelihoods(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the log-probability of each text, [SEP] included, as a caption of its prefix: (M,), on the CPU.

    Consecutive equal prefixes (the same object) are computed once.
    """
    tokenizer, examples = trained.processor.tokenizer, []
    for _, group in groupby(zip(prefixes, words, strict=True), key=lambda pair: id(pair[0])):
        pairs = list(group)
        texts = [causal_text(text, tokenizer) for _, text in pairs]
        examples.append(Example(source="probe", objective="words", prefix=pairs[0][0], texts=texts, seq2seq=True))
    batch = trained.batch(examples, {"words": TargetSpec(CaptionTargets)})
    targets, head = batch.targets["words"], trained.model.word_head
    assert isinstance(targets, CaptionTargets) and head is not None
    rows = trained.model(batch)[targets.rows]
    logs = [
        head(some).float().log_softmax(dim=-1).gather(1, labels[:, None])[:, 0].cpu()
        for some, labels in zip(rows.split(WORDS_AT_ONCE), targets.labels.split(WORDS_AT_ONCE), strict=True)
    ]
    return finite(torch.zeros(len(words)).index_add(0, targets.texts.cpu(), torch.cat(logs)))


def cosines(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the similarity of each prefix and its text, each embedded alone: (M,), on the CPU.

    Equal prefixes (the same object) are computed once.
    """
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(map(id, prefixes)))}
    distinct = {id(prefix): prefix for prefix in prefixes}
    images, texts = embed_images(trained, list(distinct.values())), embed_texts(trained, words)
    return similarity(trained, images, texts)[[numbers[id(prefix)] for prefix in prefixes], range(len(words))]


class Scorer(NamedTuple):
    """A score of pairs of image and text.

    Attributes:
        available: processor -> whether its model has this score.
        apply: (trained model, prefixes, token ids of a text for each) -> (M,).
        shared: processor -> whether an image is computed once for all its texts.

    """

    available: Callable[[Processor], bool]
    apply: Callable[[TrainedModel, Sequence[Prefix], Sequence[np.ndarray]], Tensor]
    shared: Callable[[Processor], bool]


SCORERS: Mapping[str, Scorer] = {
    "match": Scorer(lambda own: own.matches, match_logits, lambda own: own.shared_prefix),
    "cosine": Scorer(lambda own: own.aligns, cosines, lambda own: True),
    "likelihood": Scorer(lambda own: own.captions and own.variant == "causal", log_likelihoods, lambda own: True),
}
Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By scorer: scores of the distinct pairs (P,), and of the distinct texts without an image (T,)."""


class _Item(NamedTuple):
    """A probe of a file, with the numbers of its pairs (images x texts) and of its texts (2,)."""

    file: str
    probe: Probe
    pairs: np.ndarray
    texts: np.ndarray


class _Pairs:
    """Distinct pairs of image and tokenised text, and distinct texts, numbered in the order in which they occur."""

    def __init__(self) -> None:
        self.words: list[np.ndarray] = []
        self.images: list[ImageKey] = []
        self.text_of: list[int] = []
        self._texts: dict[bytes, int] = {}
        self._pairs: dict[tuple[str, int], int] = {}

    def text(self, words: np.ndarray) -> int:
        number = self._texts.setdefault(words.tobytes(), len(self.words))
        if number == len(self.words):
            self.words.append(words)
        return number

    def pair(self, image: str, text: int) -> int:
        number = self._pairs.setdefault((image, text), len(self.images))
        if number == len(self.images):
            self.images.append(((image,), ()))
            self.text_of.append(text)
        return number


def evaluate_probes(
    trained: TrainedModel,
    store: RegionStore,
    paths: Sequence[Path],
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model by files of probes; those of several files also by file.

    Args:
        trained: a model that matches, aligns or captions.
        store: regions of the images.
        paths: files of probes, of any known format.
        options: how images are found in the store, and whether missing ones are an error or skipped.
        progress: called with (scores computed, scores in total).

    Raises:
        UserError: the model has no such score, two files have one name, or as `read_probes`, `match_file` and
            `store_batches`.

    """
    scorers = {name: one for name, one in SCORERS.items() if one.available(trained.processor)}
    if not scorers:
        raise UserError(
            f"{trained.weights.parent} neither matches nor aligns images and texts, and predicts no next word; give a "
            "run that was pretrained, or trained to caption or retrieve"
        )
    files, found, pairs, left_out = _names(paths), list[_Item](), _Pairs(), dict[str, int]()
    for name, path in files.items():
        read = read_probes(path)
        rule = match_file(path, image_records(read.items), store, trained.processor, options.match, "--match ")
        rule.check(store, options.missing, "--skip-missing")
        there = [probe for probe in read.items if all(str(image) in rule.store_ids for image in probe.images)]
        lacking = {"item with an image that is not in the store": len(read.items) - len(there)}
        for reason, count in (read.left_out | lacking).items():
            left_out[reason] = left_out.get(reason, 0) + count
        words = iter(trained.tokenise([text for probe in there for text in probe.texts]))
        for probe in there:
            texts = [pairs.text(next(words)) for _ in probe.texts]
            numbers = [[pairs.pair(rule.store_ids[str(image)], text) for text in texts] for image in probe.images]
            found.append(_Item(name, probe, np.array(numbers), np.array(texts)))
    if alike := [item for item in found if item.texts[0] == item.texts[1]]:
        shown = [short(text) for text in alike[0].probe.texts]
        logger.warning(
            "%s of caption and foil have the same tokens, such as %s and %s; they count as wrong",
            *(counted(len(alike), "pair"), *shown),
        )
    scores = _scores(trained, store, pairs, scorers, progress)
    items = [_record(item, scores, several=len(files) > 1) for item in found]
    predictions = [{name: item[name] for name in ("text_id", "scores")} for item in items]
    return Evaluation(predictions=predictions, items=items, scores=_summary(items), files=files, left_out=left_out)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name each file by its stem."""
    names: dict[str, Path] = {}
    for path in paths:
        if names.setdefault(path.stem, path) is not path:
            raise UserError(f"{names[path.stem]} and {path} are both called {path.stem!r}; rename one, or omit it")
    return names


def _scores(
    trained: TrainedModel, store: RegionStore, pairs: _Pairs, scorers: Mapping[str, Scorer], progress: Progress | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    lengths = np.array([len(text) + 1 for text in pairs.words], dtype=np.int64)
    result, done, total = {}, 0, len(scorers) * (len(pairs.images) + len(pairs.words))
    for name, (_, apply, shared) in scorers.items():
        seen, unseen = np.zeros(len(pairs.images)), np.zeros(len(pairs.words))
        rows = [int(lengths[text]) for text in pairs.text_of]
        for chosen, prefixes in pair_batches(trained, store, pairs.images, rows, shared(trained.processor)):
            words = [pairs.words[pairs.text_of[pair]] for pair in chosen]
            seen[chosen] = apply(trained, prefixes, words).double().cpu().numpy()
            done += len(chosen)
            if progress is not None:
                progress(done, total)
        nothing = _without_regions(trained, store, pairs.images[0])
        for texts in in_order(lengths + len(nothing.context), ROW_BUDGET):
            words = [pairs.words[text] for text in texts]
            unseen[texts] = apply(trained, [nothing] * len(words), words).double().cpu().numpy()
            done += len(texts)
            if progress is not None:
                progress(done, total)
        result[name] = (seen, unseen)
    return result


def _without_regions(trained: TrainedModel, store: RegionStore, image: ImageKey) -> Prefix:
    """Return the prefix of an image of which nothing is seen: no region and no tag."""
    reader = trained.processor.reader(store)
    [regions] = reader.read(PrefixImages.find(store, [image]))
    arrays = {name: array[:0] for name, array in regions.arrays.items()}
    times = None if regions.times is None else regions.times[:0]
    return reader.prefix(replace(regions, image_index=regions.image_index[:0], times=times, **arrays))


def _record(item: _Item, scores: Scores, several: bool) -> dict[str, Any]:
    """Return what `items.jsonl` has of an item."""
    probe, means, written = item.probe, dict[str, Any](), dict[str, Any]()
    for name, (seen, unseen) in scores.items():
        own = seen[item.pairs]  # images x texts
        written[name] = [[round(float(value), 6) for value in row] for row in own]
        if len(own) == 1:
            right, guessed = own[0, 0] > own[0, 1], unseen[item.texts[0]] > unseen[item.texts[1]]
            means[name] = {"accuracy": int(right), "text_only": int(guessed)}
            means[name] |= {"above_text_only": int(right) - int(guessed)}
            written[f"{name}_text_only"] = [round(float(value), 6) for value in unseen[item.texts]]
        else:
            text = own[0, 0] > own[0, 1] and own[1, 1] > own[1, 0]
            image = own[0, 0] > own[1, 0] and own[1, 1] > own[0, 1]
            means[name] = {"text": int(text), "image": int(image), "group": int(text and image)}
    ids: Sequence[Id] = probe.images
    return {
        "text_id": f"{item.file}/{probe.probe_id}",
        **official_images((ids, ())),
        **dict(zip(("caption", "foil") if len(ids) == 1 else ("caption_0", "caption_1"), probe.texts, strict=True)),
        "scores": written,
        "means": means | ({"by_file": {item.file: means}} if several else {}),
    }


def _summary(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores by their place, and of several files their mean over files, as published for VALSE."""
    scores: dict[str, Any] = {"task": "probe", "count": len(items)}
    over_files: dict[tuple[str, ...], list[float]] = {}
    for place, (numbers, score) in measures(items).items():
        value, node = float(score(numbers.sum(axis=0))), scores
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = value
        if place[0] == "by_file":
            over_files.setdefault(place[2:], []).append(value)
    for (scorer, name), values in over_files.items():
        scores.setdefault("mean_of_files", {}).setdefault(scorer, {})[name] = sum(values) / len(values)
    return scores
