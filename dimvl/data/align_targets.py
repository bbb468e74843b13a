"""Targets of contrastive learning: groups of images and texts, each seen alone, to be aligned.

Letters: I images and T texts of a group or a batch, R regions, L words.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dimvl.data.layout import ranges
from dimvl.data.targets import Chosen, Targets, join, lengths

OWN, OTHER, IGNORED = 1, 0, -1
"""Relations of an image and a text: a positive pair, a negative, or neither, as of an equal text of another image."""


class Member(NamedTuple):
    """Payload of one image of a contrastive group; the examples of a group come one after the other.

    Attributes:
        first: whether a group starts here.
        relations: (T,) int8 for each text of the group, in the order of its examples: `OWN`, `OTHER` or `IGNORED`.

    """

    first: bool
    relations: np.ndarray


@dataclass(frozen=True, eq=False)
class AlignTargets(Targets):
    """Groups of images and texts, each seen alone, to be aligned.

    Attributes:
        rows: all of the rows below.
        images: (I,) the [CLS] row of each image.
        regions: (R,) rows of the regions of these images, image by image.
        texts: (T,) the last row of each text.
        words: (L,) rows of the words of these texts, text by text.
        relations: (sum of I x T over groups,) int8 of each image and each text of its group, image by image.
        region_counts: regions of each image.
        word_counts: words of each text.
        text_counts: texts of each image.
        groups: numbers of images and of texts of each group.

    """

    images: Tensor
    regions: Tensor
    texts: Tensor
    words: Tensor
    relations: Tensor
    region_counts: tuple[int, ...]
    word_counts: tuple[int, ...]
    text_counts: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    head = "align_head"

    def __len__(self) -> int:
        """Return the number of images I, whose losses an optimiser step averages."""
        return len(self.images)

    @property
    def head_rows(self) -> dict[str, int]:
        """Rows of the head and of its four projections."""
        kinds = {"image": self.images, "region": self.regions, "text": self.texts, "word": self.words}
        return super().head_rows | {f"{self.head}.{name}": len(rows) for name, rows in kinds.items()}

    @property
    def similarities(self) -> int:
        """Products of images with texts, and of regions with words, within groups."""
        total, image, text = 0, 0, 0
        for images, texts in self.groups:
            regions, words = self.region_counts[image : image + images], self.word_counts[text : text + texts]
            total += images * texts + sum(regions) * sum(words)
            image, text = image + images, text + texts
        return total

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Member`."""
        layout, members = chosen.layout, np.array(chosen.indices, dtype=np.int64)
        payloads: list[Member] = chosen.payloads
        starts = [place for place, payload in enumerate(payloads) if payload.first]
        bounds = [slice(*ends) for ends in pairwise([*starts, len(payloads)])]
        text_counts = lengths([chosen.examples[index].texts for index in chosen.indices])
        regions, words = layout.num_regions[members], layout.text_lengths[chosen.text_numbers] - 1
        parts = [
            layout.context_starts[members],
            ranges(layout.region_starts[members], regions),
            chosen.last_rows,
            ranges(layout.text_starts[chosen.text_numbers], words),
        ]
        images, region_rows, texts, word_rows = (torch.from_numpy(part.astype(np.int64)) for part in parts)
        return cls(
            rows=torch.cat([images, region_rows, texts, word_rows]),
            images=images,
            regions=region_rows,
            texts=texts,
            words=word_rows,
            relations=torch.from_numpy(join([payload.relations for payload in payloads], np.int8)),
            region_counts=tuple(regions.tolist()),
            word_counts=tuple(words.tolist()),
            text_counts=tuple(text_counts.tolist()),
            groups=tuple((len(text_counts[bound]), int(text_counts[bound].sum())) for bound in bounds),
        )
