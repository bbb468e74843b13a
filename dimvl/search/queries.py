"""Texts and images as queries, and the best results scored again by the matching head."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dimvl.data.annotations import ImageKey, read_captions
from dimvl.data.prefixes import Prefix, best_regions, make_prefix
from dimvl.data.sampler import in_order
from dimvl.errors import UserError
from dimvl.files import read_text
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import is_no_detector
from dimvl.regions.store import RegionStore
from dimvl.search.index import ImageIndex
from dimvl.tasks.inference import ROW_BUDGET, predict_texts, store_batches
from dimvl.tasks.pretraining.matching import MATCH, match_logits
from dimvl.tasks.retrieval.prediction import embed_all_texts, embed_images, scales
from dimvl.trained_model import TrainedModel


class Hit(NamedTuple):
    """A result.

    Attributes:
        place: position of the image in the index, or place of the text among the texts.
        score: cosine of its embedding and that of the query; of several texts together, the mean.
        probability: that image and text, or all texts, belong together, by the matching head; None if it was not asked.

    """

    place: int
    score: float
    probability: float | None = None


class ImageQuery(NamedTuple):
    """An image to search by.

    Attributes:
        embedding: (1, W).
        position: of an image of the index; None for a file.
        prefix: of a file; None for an image of the index.

    """

    embedding: Tensor
    position: int | None = None
    prefix: Prefix | None = None


def read_texts(path: Path) -> list[str]:
    """Read the different texts of a caption file of any known format, or of a `.txt` file, one per line.

    Raises:
        UserError: as `read_captions`, or the file has no text.

    """
    if path.suffix.lower() == ".txt":
        texts = [line.strip() for line in read_text(path).splitlines()]
    else:
        texts = [caption.text.strip() for caption in read_captions(path)]
    if not any(texts):
        raise UserError(f"{path} has no text; give some")
    return list(dict.fromkeys(filter(None, texts)))


def image_query(predictor: Predictor, index: ImageIndex, image: str) -> ImageQuery:
    """Return an image to search by: a file, or the id of an image of the index.

    Raises:
        UserError: it is neither, or both; or a file that cannot be read, or for which the model has no detector.

    """
    position, is_file = index.find(image), os.path.exists(image)
    if position is not None and is_file:
        raise UserError(f"{image} is a file and an image of {index.path}; write ./{image} for the file")
    if position is not None:
        return ImageQuery(index.embedding(position)[None], position)
    if not is_file:
        raise UserError(
            f"{image} is neither a file nor an image of {index.path}; give a file, or an id such as "
            f"{index.image_id(0)!r}"
        )
    trained = predictor.trained
    if is_no_detector(predictor.detector_folder):
        raise UserError(
            f"the model {trained.weights.parent} has no detector, so it takes no image files; give the id of an image "
            f"of the index, such as {index.image_id(0)!r}"
        )
    processor = trained.processor
    regions = best_regions(predictor.regions(Path(image)).checked(processor.extractor), processor.max_regions)
    prefix = make_prefix(regions, processor.tags)
    return ImageQuery(embed_images(trained, [prefix]).pooled, prefix=prefix)


def find_images(index: ImageIndex, queries: Tensor, count: int) -> list[list[Hit]]:
    """Find the `count` best images for each query (Q, W); raises as `ImageIndex.search`."""
    return [
        [Hit(place, score) for place, score in zip(found.positions.tolist(), found.scores.tolist(), strict=True)]
        for found in index.search(queries, count)
    ]


def find_by_texts(
    trained: TrainedModel, index: ImageIndex, queries: Sequence[Sequence[str]], count: int
) -> list[list[Hit]]:
    """Find the `count` best images for each query of one or more texts, by the mean of their cosines."""
    means = torch.stack([embed_all_texts(trained, texts).pooled.mean(dim=0) for texts in queries])
    lengths = means.norm(dim=1)
    found = find_images(index, means / lengths[:, None], count)
    return [
        [hit._replace(score=hit.score * length) for hit in hits] if len(texts) > 1 else hits
        for texts, hits, length in zip(queries, found, lengths.tolist(), strict=True)
    ]


def find_similar(index: ImageIndex, query: ImageQuery, count: int) -> list[Hit]:
    """Find the `count` images most similar to one; an image of the index is not among its own results."""
    own = query.position is not None
    [found] = find_images(index, query.embedding, count + own)
    return [hit for hit in found if hit.place != query.position][:count]


def find_texts(query: ImageQuery, texts: Tensor, count: int) -> list[Hit]:
    """Find the `count` best of texts, given as embeddings (M, W), for an image."""
    scores = (texts.double() @ query.embedding[0].double()).float()
    best = torch.sort(scores, descending=True, stable=True)
    found = zip(best.indices[:count].tolist(), best.values[:count].tolist(), strict=True)
    return [Hit(place, score) for place, score in found]


def open_store(index: ImageIndex) -> RegionStore:
    """Open the region store of an index; a `UserError` if it is not where it was."""
    folder = Path(index.manifest.store)
    if not folder.is_dir():
        raise UserError(
            f"region store {folder} of {index.path} does not exist; run `dimvl index` with its new place and this index"
        )
    return RegionStore(folder, check=True)


def image_keys(index: ImageIndex, store: RegionStore, positions: Sequence[int]) -> list[ImageKey]:
    """Return images of an index as records name them.

    Raises:
        UserError: the store lacks one, or has other regions of it than were embedded.

    """
    ids = [index.image_id(position) for position in positions]
    checksums = [index.checksum(position) for position in positions]
    changed = np.flatnonzero(store.checksums(store.positions(ids)) != np.array(checksums, dtype=np.int64))
    if len(changed):
        raise UserError(
            f"the regions of image {ids[changed[0]]!r} in region store {store.path} differ from those that were "
            f"embedded; rebuild the index {index.path} in another folder"
        )
    return [((image_id,), ()) for image_id in ids]


def rerank_images(
    trained: TrainedModel,
    index: ImageIndex,
    queries: Sequence[Sequence[np.ndarray]],
    found: Sequence[Sequence[Hit]],
) -> list[list[Hit]]:
    """Sort the results of texts by the matching head's logit plus the scaled cosine, as evaluations of retrieval do.

    Both are added over the texts of a query. The prefix of an image is computed once for all texts where the model
    allows.

    Args:
        trained: a model with a matching head.
        index: the index, with the region store of its images.
        queries: token ids of the texts of each of the Q queries, at least one.
        found: results of each.

    Raises:
        UserError: the model cannot match, or as `open_store` and `image_keys`.

    """
    MATCH.check(trained)
    store = open_store(index)
    pairs = [(hit, text) for query, hits in zip(queries, found, strict=True) for hit in hits for text in query]
    texts = [text for _, text in pairs]
    images = image_keys(index, store, [hit.place for hit, _ in pairs])
    known = trained.without_guard()
    logits = predict_texts(known, store, images, texts, lambda prefixes, own: match_logits(known, prefixes, own).cpu())
    parts = torch.stack(logits).split([len(hits) * len(query) for query, hits in zip(queries, found, strict=True)])
    return [
        _sorted(trained, hits, own.view(len(hits), len(query)))
        for query, hits, own in zip(queries, found, parts, strict=True)
    ]


def rerank_texts(
    trained: TrainedModel, index: ImageIndex, query: ImageQuery, texts: Sequence[str], hits: Sequence[Hit]
) -> list[Hit]:
    """Sort the texts found for an image as `rerank_images` does; `texts` are those of the results.

    Raises:
        UserError: as `rerank_images`.

    """
    MATCH.check(trained)
    prefix, words = query.prefix, trained.tokenise(texts)
    if prefix is None:
        assert query.position is not None
        store = open_store(index)
        images = image_keys(index, store, [query.position])
        [(_, [prefix])] = store_batches(trained.without_guard(), store, images, [0])
    assert prefix is not None
    again = 0 if trained.processor.shared_prefix else len(prefix.features) + len(prefix.context)
    logits = torch.zeros(len(hits))
    for part in in_order(np.array([len(text) + 1 + again for text in words]), ROW_BUDGET):
        own = [words[place] for place in part]
        logits[torch.from_numpy(part)] = match_logits(trained, [prefix] * len(own), own).cpu()
    return _sorted(trained, hits, logits[:, None])


def _sorted(trained: TrainedModel, hits: Sequence[Hit], logits: Tensor) -> list[Hit]:
    """Return results with the probabilities of the matching head, the best first; equal ones stay in their order.

    `logits` are of each result with each of T texts, (H, T).
    """
    sums = logits.sum(dim=1) + logits.shape[1] * scales(trained)[0] * torch.tensor([hit.score for hit in hits])
    probabilities = logits.sigmoid().prod(dim=1).tolist()
    order = torch.sort(sums, descending=True, stable=True).indices.tolist()
    return [hits[place]._replace(probability=probabilities[place]) for place in order]
