"""Captions and a region store to what concepts are trained and measured on: images with their words.

Letters: I images, B images of a batch, N regions of all its images, F feature width, W words.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dimvl.concepts.words import Lexicon
from dimvl.config import InputsConfig, Match, Missing
from dimvl.data.annotations import read_captions
from dimvl.data.annotations.records import Caption
from dimvl.data.matching import in_store, match_file
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageTexts:
    """The captions of the images of a store.

    Attributes:
        store: the regions.
        positions: (I,) int64 of the images that have captions and regions, rising.
        texts: the captions of each.
        dropped: number of captions whose image is not in the store.

    """

    store: RegionStore
    positions: np.ndarray
    texts: Sequence[Sequence[str]]
    dropped: int

    def all_texts(self) -> Iterable[str]:
        """Yield every caption."""
        return (text for own in self.texts for text in own)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images of a store, each with the words of its captions.

    Attributes:
        store: the regions.
        positions: (I,) int64.
        words: ids of the words of each image.
        num_words: W.

    """

    store: RegionStore
    positions: np.ndarray
    words: Sequence[np.ndarray]
    num_words: int

    def __len__(self) -> int:
        """Return the number of images I."""
        return len(self.positions)

    def part(self, chosen: np.ndarray) -> "LabelledImages":
        """Return some of the images, by their numbers here."""
        words = [self.words[number] for number in chosen.tolist()]
        return LabelledImages(store=self.store, positions=self.positions[chosen], words=words, num_words=self.num_words)

    def regions(self, chosen: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Read features (N, F) float32 of the regions of some images (B,), end to end, and their numbers (B,)."""
        packed = self.store.read_packed(self.positions[chosen]).dequantised()
        features = torch.from_numpy(packed.features).to(device).float()
        return features, torch.from_numpy(packed.num_regions).to(device)

    def labels(self, chosen: np.ndarray) -> Tensor:
        """Return (B, W) float32: 1 where a caption of the image has the word."""
        labels = torch.zeros(len(chosen), self.num_words)
        for row, number in enumerate(chosen.tolist()):
            labels[row, torch.from_numpy(self.words[number])] = 1
        return labels

    def rates(self) -> Tensor:
        """Return the share (W,) float32 of the images that have each word."""
        counts = np.zeros(self.num_words)
        for words in self.words:
            counts[words] += 1
        return torch.from_numpy(counts / len(self)).float()


def read_texts(
    files: Sequence[Path], split: Sequence[str], store: RegionStore, missing: Missing, match: Match
) -> ImageTexts:
    """Read caption files and find their images in a store.

    Raises:
        UserError: as `read_captions` and `match_file`; a caption of several images; no caption has text; or an image is
            missing and `missing` is `error`.

    """
    texts: dict[str, list[str]] = {}
    dropped = 0
    for file in files:
        records: list[Caption] = read_captions(file, split)
        if several := next((record for record in records if len(record.image_ids) > 1 or record.is_video), None):
            raise UserError(
                f"{file}: {several.name} is about several images, and nothing says which of them shows a word; give "
                "captions of one image each"
            )
        matched = match_file(file, records, store, InputsConfig(times=True), match)
        matched.check(store, missing, "missing=skip")
        dropped += matched.texts_missing
        for record in in_store(records, matched):
            if record.text:
                texts.setdefault(record.image_id, []).append(record.text)
    positions = store.positions(texts)
    seen = store.num_regions(positions) > 0
    if not seen.any():
        raise UserError(f"no image of {files[0]} has a caption and regions; check that it is the right file")
    if not seen.all():
        log.warning("%d images have no regions and are left out", (~seen).sum())
    order = np.argsort(positions)
    order = order[seen[order]]
    listed = list(texts.values())
    return ImageTexts(
        store=store, positions=positions[order], texts=[listed[number] for number in order.tolist()], dropped=dropped
    )


def label(images: ImageTexts, lexicon: Lexicon, ids: Mapping[str, int]) -> LabelledImages:
    """Give each image the ids of the lemmas of all its captions that are in a vocabulary."""
    words = [
        np.unique([ids[lemma] for text in own for lemma in lexicon.lemmas(text) if lemma in ids]).astype(np.int64)
        for own in images.texts
    ]
    return LabelledImages(store=images.store, positions=images.positions, words=words, num_words=len(ids))
