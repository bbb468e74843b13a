"""Targets of grounding: the regions of an image that a phrase refers to.

Letters: T phrases, R regions, S pairs of phrase and region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dimvl.data.layout import ranges, starts_of
from dimvl.data.targets import Chosen, Targets, join, lengths


class Pointed(NamedTuple):
    """Payload of phrases: for each text the numbers of the regions of its prefix that are right, or none of them."""

    right: Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class RegionTargets(Targets):
    """Phrases, each with a softmax over the regions of its own prefix; S pairs of phrase and region, phrase by phrase.

    Attributes:
        rows: the rows below.
        texts: (T,) the last row of each phrase.
        regions: (R,) rows of the regions of the chosen prefixes, prefix by prefix.
        pair_texts: (S,) place in `texts` of each pair, ascending.
        pair_regions: (S,) place in `regions` of each pair.
        right: (S,) bool, whether the region is one that the phrase refers to.

    """

    texts: Tensor
    regions: Tensor
    pair_texts: Tensor
    pair_regions: Tensor
    right: Tensor
    head = "region_head"

    def __len__(self) -> int:
        """Return the number of phrases T."""
        return len(self.texts)

    @property
    def head_rows(self) -> dict[str, int]:
        """Rows of the head and of its projections."""
        texts, regions = len(self.texts), len(self.regions)
        parts = {"text": texts, "region": regions, "alone": regions, "nowhere": texts}
        return super().head_rows | {f"{self.head}.{name}": rows for name, rows in parts.items()}

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Pointed`, none where only the prediction is wanted."""
        members = np.array(chosen.indices, dtype=np.int64)
        counts = chosen.layout.num_regions[members]
        owners = np.repeat(np.arange(len(members)), lengths([chosen.examples[index].texts for index in chosen.indices]))
        pairs = counts[owners]  # of each phrase
        right = np.zeros(int(pairs.sum()), dtype=bool)
        listed = [ids for payload in chosen.payloads if payload is not None for ids in payload.right]
        if listed:
            right[np.repeat(starts_of(pairs), lengths(listed)) + join(listed, np.int64)] = True
        texts = torch.from_numpy(chosen.last_rows.astype(np.int64))
        regions = torch.from_numpy(ranges(chosen.layout.region_starts[members], counts).astype(np.int64))
        return cls(
            rows=torch.cat([texts, regions]),
            texts=texts,
            regions=regions,
            pair_texts=torch.from_numpy(np.repeat(np.arange(len(pairs)), pairs)),
            pair_regions=torch.from_numpy(ranges(starts_of(counts)[owners], pairs).astype(np.int64)),
            right=torch.from_numpy(right),
        )
