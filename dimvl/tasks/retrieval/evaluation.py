"""Retrieval scored by the official protocol, by embeddings and then by the matching head, and for validation.

Letters: I images, T texts, Q queries of texts (each text, or all texts of an image together), K candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dimvl.callbacks import Progress, after
from dimvl.data.annotations import Caption, describe_file, read_captions
from dimvl.data.prefixes import PrefixImages
from dimvl.errors import UserError
from dimvl.metrics.predictions import official_images
from dimvl.metrics.recall import (
    DIRECTIONS,
    Candidates,
    Right,
    extra_owners,
    folds,
    inverse,
    mean_scores,
    ranks,
    recall_scores,
    texts_of_other_images,
)
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.inference import predict_texts, records_in_store
from dimvl.tasks.pretraining.matching import MATCH, match_logits
from dimvl.tasks.retrieval.config import RetrievalEvaluation, RetrieveConfig, Score
from dimvl.tasks.retrieval.prediction import (
    EMBED_IMAGE,
    Embeddings,
    distinct_tokens,
    embed_all_texts,
    embed_images,
    embed_store,
    embed_texts,
    joined,
    scales,
    token_scores,
)
from dimvl.tasks.task import Evaluation, ValidationScore, Validator
from dimvl.tasks.validating import matched, subset
from dimvl.trained_model import TrainedModel

SIMILARITIES = 2**24
"""Products of regions and words in memory at once."""
LISTED = 10
"""Answers listed for each query in the predictions."""


@dataclass(frozen=True)
class Gallery:
    """The images of a caption file and its texts.

    Attributes:
        captions: T texts.
        images: I keys of images, in the order of the file.
        query_of: (T,) the query that each text is part of.
        owners: (Q,) the image of each query.

    """

    captions: Sequence[Caption]
    images: Sequence[Any]
    query_of: np.ndarray
    owners: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[Caption], together: bool = False) -> "Gallery":
        """Collect the images of texts; each text is a query, or all texts of an image `together`."""
        places: dict[Any, int] = {}
        owners = np.array([places.setdefault(one.images, len(places)) for one in captions], dtype=np.int64)
        if together:
            return cls(captions, list(places), owners, np.arange(len(places)))
        return cls(captions, list(places), np.arange(len(captions)), owners)

    @property
    def right(self) -> dict[str, list[list[int]]]:
        """The right answers to each query, by direction."""
        of_texts = [[owner] for owner in self.owners.tolist()]
        return {"image_to_text": inverse(of_texts, len(self.images)), "text_to_image": of_texts}

    def of_queries(self, scores: np.ndarray) -> np.ndarray:
        """Add the scores (I, T) of the texts of each query: (I, Q)."""
        added = np.zeros((len(scores), len(self.owners)), scores.dtype)
        np.add.at(added.T, self.query_of, scores.T)
        return added

    def texts_of(self, query: int) -> list[Caption]:
        """Return the texts of a query."""
        return [self.captions[place] for place in np.flatnonzero(self.query_of == query).tolist()]


def embedding_scores(images: Embeddings, texts: Embeddings, score: Score) -> np.ndarray:
    """Scores of all images for all texts: (I, T) float32, by either score."""
    if score == "global":
        return (images.pooled @ texts.pooled.T).numpy()
    scores = np.empty((len(images.counts), len(texts.counts)), np.float32)
    ends = np.cumsum(texts.counts)
    widths, starts = ends - texts.counts, 0
    while starts < len(ends):
        room = max(1, SIMILARITIES // max(1, len(images.rows)))
        stop = max(starts + 1, int(np.searchsorted(ends, widths[starts] + room, side="right")))
        part = Embeddings(
            texts.pooled[starts:stop], texts.rows[widths[starts] : ends[stop - 1]], texts.counts[starts:stop]
        )
        scores[:, starts:stop] = token_scores(images, part).numpy()
        starts = stop
    return scores


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places (Q, K) of the best of each row (Q, G), best first; of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def match_candidates(
    trained: TrainedModel,
    store: RegionStore,
    gallery: Gallery,
    scores: np.ndarray,
    count: int,
    progress: Progress | None = None,
) -> dict[str, Candidates]:
    """Score the best `count` answers to each query by the matching head, plus their scaled cosine, by direction.

    A pair that both directions need, or of equal tokens, is scored once, and an image is computed once for all its
    texts where the model allows.

    Args:
        trained: the model.
        store: regions of the images.
        gallery: images and texts.
        scores: (I, Q) logits of the embeddings.
        count: K.
        progress: called with (pairs scored, pairs in total).

    """
    chosen = {"image_to_text": best(scores, count), "text_to_image": best(scores.T, count)}
    wanted = np.zeros(scores.shape, dtype=bool)
    wanted[np.arange(len(scores))[:, None], chosen["image_to_text"]] = True
    wanted[chosen["text_to_image"], np.arange(scores.shape[1])[:, None]] = True
    image, text = np.nonzero(wanted[:, gallery.query_of])  # image by image
    keys, words = distinct_tokens(trained.tokenise([caption.text for caption in gallery.captions]))
    pairs, which = np.unique(image * len(words) + keys[text], return_inverse=True)
    logits = predict_texts(
        trained,
        store,
        [gallery.images[place] for place in (pairs // len(words)).tolist()],
        [words[place] for place in (pairs % len(words)).tolist()],
        lambda prefixes, own: match_logits(trained, prefixes, own).tolist(),
        progress,
    )
    matched_scores = scores.copy()
    np.add.at(matched_scores, (image, gallery.query_of[text]), np.array(logits, scores.dtype)[which])
    sides = {"image_to_text": matched_scores, "text_to_image": matched_scores.T}
    return {
        direction: Candidates(chosen[direction], np.take_along_axis(side, chosen[direction], axis=1))
        for direction, side in sides.items()
    }


def evaluate_retrieval(
    trained: TrainedModel, store: RegionStore, options: RetrievalEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Search the images of a caption file by its texts, and the texts by the images, in two stages.

    Progress counts the images, the texts and then the pairs to match.

    Raises:
        UserError: as `read_captions` and `records_in_store`, or the model lacks the heads.

    """
    EMBED_IMAGE.check(trained)
    if options.candidates and not MATCH.available(trained.processor):
        if "candidates" in options.model_fields_set:
            raise UserError(f"{trained.weights.parent} has no matching head to rank candidates; give candidates=0")
        options = options.model_copy(update={"candidates": 0})
    read = read_captions(options.captions, options.split)
    records, missing = records_in_store(options.captions, read, trained, store, options)
    gallery = Gallery.of(records, options.together)
    if options.candidates > len(gallery.images) and "candidates" in options.model_fields_set:
        raise UserError(f"candidates is {options.candidates} but there are only {len(gallery.images)} images; lower it")
    texts = [caption.text for caption in gallery.captions]
    images = embed_store(trained, store, gallery.images, progress)
    embedded = embed_all_texts(trained, texts, after(progress, len(gallery.images)))
    scale = float(scales(trained)[0 if options.score == "global" else 1])
    scores = gallery.of_queries(scale * embedding_scores(images, embedded, options.score))
    first = _ranks(scores, gallery.right, {})
    second: dict[str, Candidates] = {}
    if options.candidates:
        then = after(progress, len(gallery.images) + len(texts))
        second = match_candidates(trained, store, gallery, scores, options.candidates, then)
    final = _ranks(scores, gallery.right, second) if second else first
    found = {direction: recall_scores(final[direction]) for direction in DIRECTIONS}
    alone = {direction: recall_scores(first[direction]) for direction in DIRECTIONS}
    parts = folds([[owner] for owner in gallery.owners.tolist()], len(gallery.images))
    by_fold = {}
    for direction in DIRECTIONS if parts else ():
        per_fold = [recall_scores(_fold_ranks(scores, gallery, fold, direction)) for fold in parts]
        by_fold[direction] = mean_scores(per_fold)
    result = {
        "task": "retrieve",
        "data": describe_file(options.captions),
        "images": len(gallery.images),
        "texts": len(texts),
        **({"queries": len(gallery.owners)} if options.together else {}),
        "score": options.score,
        "candidates": options.candidates,
        **found,
        "embedding_only": alone,
        **({"embedding_only_mean_of_folds_of_1000": by_fold} if by_fold else {}),
        **(_with_extra(scores, gallery, second) if options.extra_positives else {}),
        "texts_of_other_images": texts_of_other_images(
            texts, [[owner] for owner in gallery.owners[gallery.query_of].tolist()]
        ),
    }
    answers = {direction: _answers(direction, scores, second) for direction in DIRECTIONS}
    items = _items(gallery, final, first, answers, bool(second))
    left_out = {"image not in the store": missing}
    return Evaluation(predictions=_predictions(gallery, answers), items=items, scores=result, left_out=left_out)


def _with_extra(scores: np.ndarray, gallery: Gallery, second: dict[str, Candidates]) -> dict[str, Any]:
    """Return the final recalls where further answers are right too, by the name of who found them."""
    ids = [_named(gallery, place)[0][0] for place in range(len(gallery.images))]
    extra = extra_owners(ids, [caption.caption_id for caption in gallery.captions])
    return {
        name: {
            direction: recall_scores(own)
            for direction, own in _ranks(scores, dict(zip(DIRECTIONS, right, strict=True)), second).items()
        }
        for name, right in extra.items()
    }


def _ranks(scores: np.ndarray, right: Mapping[str, Right], second: Mapping[str, Candidates]) -> dict[str, np.ndarray]:
    sides = {"image_to_text": scores, "text_to_image": np.ascontiguousarray(scores.T)}
    return {direction: ranks(sides[direction], right[direction], second.get(direction)) for direction in DIRECTIONS}


def _fold_ranks(scores: np.ndarray, gallery: Gallery, fold: Any, direction: str) -> np.ndarray:
    """Ranks within a fold, by embeddings."""
    part = scores[np.ix_(fold.images, fold.texts)]
    if direction == "image_to_text":
        return ranks(part, inverse(fold.owners, len(fold.images)))
    return ranks(np.ascontiguousarray(part.T), fold.owners)


def _answers(direction: str, scores: np.ndarray, second: dict[str, Candidates]) -> np.ndarray:
    """Places of the first answers to each query: (Q, up to `LISTED`)."""
    if direction in second:
        places, own = second[direction]
        return np.take_along_axis(places, best(own, LISTED), axis=1)
    return best(scores if direction == "image_to_text" else scores.T, LISTED)


def _predictions(gallery: Gallery, answers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The first answers to each query, by id."""
    ids = [[caption.caption_id for caption in gallery.texts_of(query)] for query in range(len(gallery.owners))]
    named: list[dict[str, Any]] = [official_images(_named(gallery, place)) for place in range(len(gallery.images))]
    texts = [
        {
            **(
                {"caption_id": ids[query][0]}
                if len(gallery.owners) == len(gallery.captions)
                else {"caption_ids": ids[query]}
            ),
            "images": [named[image] for image in own.tolist()],
        }
        for query, own in enumerate(answers["text_to_image"])
    ]
    images = [
        {**named[place], "caption_ids": [one for query in own.tolist() for one in ids[query]]}
        for place, own in enumerate(answers["image_to_text"])
    ]
    return [*texts, *images]


def _named(gallery: Gallery, place: int) -> Any:
    """Return the images of a gallery's entry as the file names them."""
    return gallery.texts_of(int(np.flatnonzero(gallery.owners == place)[0]))[0].named_images


def _items(
    gallery: Gallery,
    final: dict[str, np.ndarray],
    first: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    reranked: bool,
) -> list[dict[str, Any]]:
    """A record per query: the first answer, and the rank of the best right one in both stages."""
    items = []
    for direction in DIRECTIONS:
        for place, own in enumerate(answers[direction].tolist()):
            if direction == "text_to_image":
                texts = gallery.texts_of(place)
                item = official_images(texts[0].named_images)
                item |= {"text_id": texts[0].caption_id, "query": " ".join(text.text for text in texts)}
                item["prediction"] = official_images(_named(gallery, own[0]))
            else:
                found = " ".join(text.text for text in gallery.texts_of(own[0]))
                item = {**official_images(_named(gallery, place)), "prediction": found}
            item |= {"direction": direction, "rank": int(final[direction][place])}
            items.append(item | ({"embedding_rank": int(first[direction][place])} if reranked else {}))
    return items


class RecallValidator(Validator):
    """Recall at 1, the mean of both directions, by embeddings of held-out images and texts."""

    def __init__(self, config: RetrieveConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        every = Gallery.of(matched(read_captions(section.captions, section.split), section.captions, config, store))
        chosen = {every.images[place] for place in subset(len(every.images), section)}
        self.gallery = Gallery.of([caption for caption in every.captions if caption.images in chosen])
        self.score = section.score
        self.trained = TrainedModel(module.model, module.processor, section.captions)
        self.words = self.trained.tokenise([caption.text for caption in self.gallery.captions])
        self.reader = module.processor.reader(store)
        self.images = PrefixImages.find(store, self.gallery.images)
        self.costs = np.append(self.reader.rows(self.images), [len(text) + 1 for text in self.words])

    def run(self, items: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """Return pooled vectors and rows of each item: an image, or after the images a text."""
        number = len(self.gallery.images)
        images, texts = items[items < number], items[items >= number] - number
        found: dict[int, Embeddings] = {}
        if len(images):
            embedded = embed_images(self.trained, self.reader.prefixes(self.images[images]))
            found |= dict(zip(images.tolist(), embedded, strict=True))
        if len(texts):
            embedded = embed_texts(self.trained, [self.words[place] for place in texts.tolist()])
            found |= dict(zip((texts + number).tolist(), embedded, strict=True))
        return [(found[item].pooled, found[item].rows) for item in items.tolist()]

    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Score the embeddings."""
        found = {item: own for items, values in parts for item, own in zip(items.tolist(), values, strict=True)}
        every = [
            Embeddings(pooled, rows, np.array([len(rows)])) for pooled, rows in (found[i] for i in range(len(found)))
        ]
        number = len(self.gallery.images)
        scores = embedding_scores(joined(every[:number]), joined(every[number:]), self.score)
        recalls = {
            direction: recall_scores(own)["r1"] for direction, own in _ranks(scores, self.gallery.right, {}).items()
        }
        return ValidationScore(sum(recalls.values()) / 2, {f"{name}/r1": value for name, value in recalls.items()})
