"""One block of images: synthetic captions are written, then all texts are scored.

Batches are formed within a block, by rows, so what is written does not depend on which process does it, or when. The
prefix of an image is computed once for all captions that are drawn of it, and once for all of its texts that are scored
(if the filter was trained with `shared_prefix`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dimvl.bootstrap.config import BootstrapConfig, SamplingConfig
from dimvl.bootstrap.texts import ImageTexts
from dimvl.checkpoints import ADAPTER, RUN
from dimvl.config import DecodingOptions
from dimvl.data.examples import keyed_generator
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.sampler import in_order
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.prediction import CAPTION, sampled_captions, text_rows
from dimvl.tasks.inference import ROW_BUDGET
from dimvl.tasks.pretraining.matching import MATCH, match_probabilities
from dimvl.tasks.retrieval.prediction import EMBED_IMAGE, embed_images, embed_texts
from dimvl.trained_model import TrainedModel, load_model, model_fingerprint

DIGITS = 16
"""Hexadecimal digits of a fingerprint that each line has; the report has all."""
DECIMALS = 6
"""Of a score. Texts are kept or dropped by the rounded score, which is the one that the files have."""


@dataclass(frozen=True)
class Model:
    """A model with the folder that the user named, and its fingerprint."""

    folder: Path
    trained: TrainedModel
    fingerprint: str


class Judged(NamedTuple):
    """The score of a text, from 0 to 1, and whether the filter read only its beginning."""

    score: float
    cut: bool


class BlockWriter:
    """Writes and scores the captions of blocks.

    Args:
        config: names the models, and how captions are drawn.
        store: the regions.
        device: where the models go.

    Attributes:
        captioner: the captioner; None to write no captions.
        filter: the filter.
        longest: tokens of the longest caption, its final [SEP] included; 0 without a captioner.

    Raises:
        UserError: a model cannot be read, was trained for something else or with another extractor.

    """

    def __init__(self, config: BootstrapConfig, store: RegionStore, device: Any) -> None:
        self.store, self.sampling, self.seed = store, config.sampling, config.seed
        self._aligns = config.score == "alignment"
        self.filter = _open(config.filter, device)
        same = config.captioner is not None and config.captioner.resolve() == config.filter.resolve()
        self.captioner: Model | None = None
        if config.captioner is not None:
            self.captioner = self.filter if same else _open(config.captioner, device)
        if not (EMBED_IMAGE if self._aligns else MATCH).available(self.filter.trained.processor):
            objective, share, other = ("contrastive", "", "matching")
            if not self._aligns:
                objective, share, other = ("matching", " with matching_share above 0", "alignment")
            raise UserError(
                f"filter {config.filter} was not trained for {config.score}, by which it is to judge (score); give one "
                f"of task retrieve{share} or pretrained with objectives.shares.{objective}, or "
                f"set score to {other}"
            )
        _check_extractor(self.filter, store, "filter")
        self.longest = 0
        if self.captioner:
            CAPTION.check(self.captioner.trained)
            _check_extractor(self.captioner, store, "captioner")
            self.longest = text_rows(self.captioner.trained, _one_caption(config.sampling))
            self.captioner.trained.for_prediction()
        if not same:
            self.filter.trained.for_prediction()

    def lines(self, block: Sequence[ImageTexts]) -> list[dict[str, Any]]:
        """Return what is written for a block: its captions and the synthetic ones of images met first, with scores."""
        drawn = self._draw([of for of in block if of.first])
        texts = [[text.caption.text for text in of.texts] + drawn.get(of.image_id, []) * of.first for of in block]
        judged = self.score([of.position for of in block], texts)
        captioner = "" if self.captioner is None else self.captioner.fingerprint[:DIGITS]
        synthetic = {"origin": "synthetic", "captioner": captioner}
        result = []
        for of, own, found in zip(block, texts, judged, strict=True):
            fields = [{"origin": "web", **text.fields} for text in of.texts]
            fields += [synthetic] * (len(own) - len(fields))
            for caption, (score, cut), more in zip(own, found, fields, strict=True):
                line = {"image": of.image_id, "caption": caption, **more, "score": score}
                line |= {"filter": self.filter.fingerprint[:DIGITS]}
                result.append(line | {"cut": True} if cut else line)
        return result

    def _draw(self, images: Sequence[ImageTexts]) -> dict[str, list[str]]:
        """Return the captions written for each image: none that is empty, a repetition, or one of the given ones."""
        if not self.captioner or not images:
            return {}
        reader, found = self.captioner.trained.processor.reader(self.store), _prefixes(of.position for of in images)
        result: dict[str, list[str]] = {}
        for chosen in in_order(reader.rows(found) + self.sampling.captions * self.longest, ROW_BUDGET):
            some = [images[place] for place in chosen.tolist()]
            draws = np.stack([self._numbers(of.image_id) for of in some])
            captions = sampled_captions(
                self.captioner.trained, reader.prefixes(found[chosen]), draws, self.sampling.nucleus
            )
            for of, own in zip(some, captions, strict=True):
                given = {text.caption.text for text in of.texts}
                result[of.image_id] = [text for text in dict.fromkeys(own) if text and text not in given]
        return result

    def _numbers(self, image_id: str) -> np.ndarray:
        """Return the numbers (S, L) that decide what is written for an image, whatever else is in its block."""
        generator = keyed_generator(self.seed, "bootstrap", image_id)
        return generator.random((self.sampling.captions, self.longest), dtype=np.float32)

    def score(self, positions: Sequence[int], texts: Sequence[Sequence[str]]) -> list[list[Judged]]:
        """Judge each text of each image, given by its position in the store."""
        trained = self.filter.trained
        reader, found = trained.processor.reader(self.store), _prefixes(positions)
        limit = trained.processor.text_tokens
        words = [self._tokens(own) for own in texts]
        once = self._aligns or trained.processor.shared_prefix
        again = np.array([1 if once else len(own) for own in words], dtype=np.int64)
        rows = reader.rows(found) * again + np.array([sum(min(len(text), limit) + 1 for text in own) for own in words])
        judged: list[list[Judged]] = [[] for _ in texts]
        for chosen in in_order(rows, ROW_BUDGET):
            pairs = [
                (place, prefix, text)
                for place, prefix in zip(chosen.tolist(), reader.prefixes(found[chosen]), strict=True)
                for text in words[place]
            ]
            places, prefixes, every = zip(*pairs, strict=True)
            score = alignments if self._aligns else match_probabilities
            scores = score(trained, prefixes, [text[:limit] for text in every]).tolist()
            for place, text, own in zip(places, every, scores, strict=True):
                judged[place].append(Judged(round(own, DECIMALS), len(text) > limit))
        return judged

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return token ids; of a text of which the tokenizer makes nothing, [UNK]."""
        tokenizer = self.filter.trained.processor.tokenizer
        return [np.array(own or [tokenizer.unknown], np.int64) for own in tokenizer.encode_all(texts)]


def alignments(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return (1 + cosine) / 2 of each prefix and its text: (M,), float32. Equal prefixes are computed once.

    The cosine is a common filter of captions from the web (LAION: Schuhmann et al., NeurIPS 2022), there by CLIP.
    """
    own = {id(prefix): prefix for prefix in prefixes}
    places = {key: place for place, key in enumerate(own)}
    images = embed_images(trained, list(own.values())).pooled[[places[id(prefix)] for prefix in prefixes]]
    return (1 + (images * embed_texts(trained, words).pooled).sum(dim=1)) / 2


def _open(folder: Path, device: Any) -> Model:
    if (folder / ADAPTER).exists() and not (folder / RUN).exists():
        raise UserError(
            f"{folder} is the export of an adapter, without its base; give its run, or what `dimvl export RUN OUT "
            "--merge` wrote of it"
        )
    trained = load_model(folder, device)
    return Model(folder, trained, model_fingerprint(trained))


def _check_extractor(model: Model, store: RegionStore, role: str) -> None:
    model.trained.processor.check_extractor(store.extractor, f"region store {store.path}, for {role} {model.folder},")


def _one_caption(sampling: SamplingConfig) -> DecodingOptions:
    given = {} if sampling.max_tokens is None else {"max_tokens": sampling.max_tokens}
    return DecodingOptions(beams=1, **given)


def _prefixes(positions: Any) -> PrefixImages:
    """Return single images, given by their positions, as prefixes."""
    found = np.fromiter(positions, dtype=np.int64)
    return PrefixImages(found, np.ones_like(found))
