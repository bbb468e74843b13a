"""Images and texts, each encoded alone, in the space that they share.

Letters: I images, G groups of captions, T texts, M items, R rows of all items, E dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.align_targets import OTHER, AlignTargets, Member
from dimvl.data.annotations import ImageKey
from dimvl.data.examples import Example
from dimvl.data.prefixes import Prefix
from dimvl.data.sampler import in_order
from dimvl.data.targets import TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import SPECIAL
from dimvl.model.heads import AlignHead
from dimvl.objectives import token_similarities
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import plain_text
from dimvl.tasks.inference import ROW_BUDGET, finite, store_batches
from dimvl.tasks.pretraining.training import align
from dimvl.tasks.task import Ability, Forward, PairRows
from dimvl.trained_model import TrainedModel

NO_REGIONS = np.zeros(0, dtype=np.int64)
GROUPS_AT_ONCE = 128


@dataclass(frozen=True)
class Embeddings:
    """Images with their regions, or texts with their words, in the shared space, on the CPU.

    Attributes:
        pooled: (M, E) float32 unit vectors.
        rows: (R, E) float32 unit vectors of the regions or words, item by item.
        counts: (M,) rows of each item.

    """

    pooled: Tensor
    rows: Tensor
    counts: np.ndarray

    def __iter__(self) -> Iterator["Embeddings"]:
        """Yield each item alone."""
        for item, (start, end) in enumerate(pairwise(np.cumsum(np.append(0, self.counts)).tolist())):
            yield Embeddings(self.pooled[item : item + 1], self.rows[start:end], self.counts[item : item + 1])


@torch.inference_mode()
def embed_images(trained: TrainedModel, prefixes: Sequence[Prefix]) -> Embeddings:
    """Embed images, or prefixes of several images, and their regions; a region has the place it has in its prefix."""
    examples = [
        Example(
            source="image",
            objective="contrastive",
            prefix=prefix,
            texts=[],
            apart=True,
            target=Member(True, np.zeros(0, np.int8)),
        )
        for prefix in prefixes
    ]
    batch = trained.batch(examples, {"contrastive": TargetSpec(AlignTargets)})
    targets = batch.targets["contrastive"]
    assert isinstance(targets, AlignTargets)
    found = align(trained.model, targets, trained.model(batch))
    return Embeddings(finite(found.images).cpu(), found.regions.cpu(), np.array(targets.region_counts, dtype=np.int64))


@torch.inference_mode()
def embed_texts(trained: TrainedModel, words: Sequence[np.ndarray]) -> Embeddings:
    """Embed texts, given as token ids, and their word pieces."""
    processor = trained.processor
    nothing = np.zeros((0, 4), np.float32)
    prefix = Prefix(
        features=np.zeros((0, processor.extractor.feature_width), np.float32),
        boxes=nothing,
        image_index=NO_REGIONS,
        hidden=NO_REGIONS.astype(bool),
        context=processor.tags.context([]),
    )
    texts = [plain_text(text, processor.tokenizer) for text in words]
    example = Example(
        source="text",
        objective="contrastive",
        prefix=prefix,
        texts=texts,
        apart=True,
        target=Member(True, np.full(len(texts), OTHER, np.int8)),
    )
    batch = trained.batch([example] if texts else [], {"contrastive": TargetSpec(AlignTargets)})
    targets = batch.targets["contrastive"]
    assert isinstance(targets, AlignTargets)
    found = align(trained.model, targets, trained.model(batch))
    return Embeddings(finite(found.texts).cpu(), found.words.cpu(), np.array(targets.word_counts, dtype=np.int64))


def global_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of images (I, E) and texts (T, E): (I, T)."""
    return images @ texts.T


def token_scores(images: Embeddings, texts: Embeddings) -> Tensor:
    """Token-wise scores of images and texts: (I, T), the mean of both directions."""
    to_texts, to_images = token_similarities(images.rows, images.counts.tolist(), texts.rows, texts.counts.tolist())
    return (to_texts + to_images) / 2


def similarity(trained: TrainedModel, images: Embeddings, texts: Embeddings) -> Tensor:
    """Logits (I, T) of the global score: cosines divided by the learned temperature."""
    return scales(trained)[0] * global_scores(images.pooled, texts.pooled)


def scales(trained: TrainedModel) -> Tensor:
    """Return the factors (2,) on the global and the token-wise score, 1 / temperature, on the CPU."""
    assert trained.model.align_head is not None
    return trained.model.align_head.scales().detach().cpu()


def embed_store(
    trained: TrainedModel, store: RegionStore, images: Sequence[ImageKey], progress: Progress | None = None
) -> Embeddings:
    """Embed images of a store, in the order given.

    Raises:
        UserError: as `store_batches`.

    """
    found: list[Embeddings | None] = [None] * len(images)
    done = 0
    for chosen, prefixes in store_batches(trained, store, images, [0] * len(images)):
        for place, one in zip(chosen.tolist(), embed_images(trained, prefixes), strict=True):
            found[place] = one
        done += len(chosen)
        if progress is not None:
            progress(done, len(images))
    return joined([one for one in found if one is not None])


def embed_groups(trained: TrainedModel, captions: TextStore, store: RegionStore) -> Tensor:
    """Embed the images of each group of captions, without their regions: (G, E)."""
    reader, found = trained.processor.reader(store), []
    for start in range(0, captions.num_groups, GROUPS_AT_ONCE):
        images = captions.images_in(store, np.arange(start, min(start + GROUPS_AT_ONCE, captions.num_groups)))
        batches = in_order(reader.rows(images), ROW_BUDGET)
        parts = [embed_images(trained, reader.prefixes(images[batch])).pooled for batch in batches]
        found.append(torch.cat(parts)[np.concatenate(batches).argsort()])
    return torch.cat(found)


def embed_all_texts(trained: TrainedModel, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
    """Embed any number of texts, in the order given; those of equal tokens once, so that rounding decides no tie.

    Raises:
        UserError: as `TrainedModel.tokenise`.

    """
    keys, words = distinct_tokens(trained.tokenise(texts))
    found: dict[int, Embeddings] = {}
    done = 0
    for chosen in in_order(np.array([len(text) + 1 for text in words], dtype=np.int64), ROW_BUDGET):
        embedded = embed_texts(trained, [words[place] for place in chosen.tolist()])
        for place, one in zip(chosen.tolist(), embedded, strict=True):
            found[place] = one
        done += len(chosen)
        if progress is not None:
            progress(done, len(words))
    return joined([found[key] for key in keys.tolist()])


def distinct_tokens(words: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return for each of T texts its place (T,) among the texts of different tokens, and these."""
    distinct = {tokens.tobytes(): tokens for tokens in words}
    places = {key: place for place, key in enumerate(distinct)}
    return np.array([places[tokens.tobytes()] for tokens in words], dtype=np.int64), list(distinct.values())


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Join embeddings, in order."""
    counts = np.concatenate([part.counts for part in parts])
    return Embeddings(torch.cat([part.pooled for part in parts]), torch.cat([part.rows for part in parts]), counts)


def _image_vectors(head: AlignHead, rows: PairRows) -> tuple[Tensor, ...]:
    found = head(rows.start, rows.regions, rows.text[:0], rows.text[:0])
    return found.images[0], found.regions


def _text_vectors(head: AlignHead, rows: PairRows) -> tuple[Tensor, ...]:
    found = head(rows.text[:0], rows.text[:0], rows.text[-1:], rows.text[:-1])
    return found.texts[0], found.words


def _vectors(embedded: Embeddings) -> tuple[Tensor, ...]:
    return embedded.pooled[0], embedded.rows


IMAGE_VECTORS = Forward(
    name="embed_image",
    head="align_head",
    outputs=_image_vectors,
    meanings={
        "image_vector": "unit vector of the image in the space of images and texts; compare vectors by their products",
        "region_vectors": "a unit vector of each region",
    },
    eager=lambda trained, prefix, words: _vectors(embed_images(trained, [prefix])),
    takes="prefix",
)
TEXT_VECTORS = Forward(
    name="embed_text",
    head="align_head",
    outputs=_text_vectors,
    meanings={
        "text_vector": "unit vector of the text in the space of images and texts; compare vectors by their products",
        "word_vectors": "a unit vector of each word piece",
    },
    eager=lambda trained, prefix, words: _vectors(embed_texts(trained, [words])),
    takes="text",
)
EMBED_IMAGE = Ability(
    verb="embed image",
    available=lambda processor: processor.aligns,
    apply=lambda trained, prefixes, words: list(embed_images(trained, prefixes)),
    result=lambda trained, embedded: embedded.pooled[0].numpy(),
    takes_text=False,
    example='predictor.embed_image("image.png")',
    forward=IMAGE_VECTORS,
)


def word_similarities(
    trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]
) -> list[tuple[list[str], np.ndarray]]:
    """Return, for each prefix and its text, the words (L,) and their cosines with the regions (L, R).

    A word has the mean of its pieces; one that the model does not know is called [UNK].
    """
    tokenizer, found = trained.processor.tokenizer, []
    for image, text, ids in zip(embed_images(trained, prefixes), embed_texts(trained, words), words, strict=True):
        starts = [
            place for place, token in enumerate(ids.tolist()) if place == 0 or not tokenizer.continues_word(token)
        ]
        bounds = list(pairwise([*starts, len(ids)]))
        cosines = (text.rows @ image.rows.T).numpy()
        means = [cosines[start:end].mean(axis=0) for start, end in bounds]
        texts = [tokenizer.decode(ids[start:end].tolist()) or SPECIAL[1] for start, end in bounds]
        found.append((texts, np.stack(means)))
    return found


ALIGN = Ability(
    verb="align",
    available=lambda processor: processor.aligns,
    prepare=lambda trained, texts: trained.tokenise_known(texts),
    apply=word_similarities,
    result=lambda trained, found: found,
    takes_text=True,
    example='predictor.align("image.png", "a red circle")',
)
EMBED_TEXT = Ability(
    verb="embed text",
    available=lambda processor: processor.aligns,
    apply=lambda trained, prefixes, words: list(embed_texts(trained, words)),
    result=lambda trained, embedded: embedded.pooled[0].numpy(),
    takes_text=True,
    example='predictor.embed_text("a red circle")',
    forward=TEXT_VECTORS,
)
