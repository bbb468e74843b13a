"""Hard negatives: images whose captions fit another image best, by the scores of an earlier model.

ALBEF (Li et al., NeurIPS 2021) draws the negatives of matching by the similarities within a batch. Here they come from
all training images, by the embeddings of a model that stays as it is, so that ranks and micro-batches change nothing.
"""

from dataclasses import dataclass

import numpy as np

from dimvl.data.examples import keyed_generator


@dataclass(frozen=True)
class HardNegatives:
    """For each image, the other images whose captions fit it best.

    Attributes:
        neighbours: (G, K) int32 images, best first, some of them more than once if there are fewer than K.
        share: share of negatives, and of the other members of a group, that are drawn from them.
        seed: seed of the run.

    """

    neighbours: np.ndarray
    share: float
    seed: int

    def draw(self, index: int, generator: np.random.Generator) -> int | None:
        """Draw an image whose caption is a negative of an image; None for any other image."""
        if generator.random() >= self.share:
            return None
        return int(self.neighbours[index, generator.integers(self.neighbours.shape[1])])

    def replace(self, epoch: int, members: np.ndarray) -> np.ndarray:
        """Replace a share of the members (K,) of a group, but not the first, by neighbours of the first."""
        generator = keyed_generator(self.seed, "neighbours", epoch, int(members[0]))
        number = min(round(self.share * (len(members) - 1)), self.neighbours.shape[1])
        near = generator.permutation(np.unique(self.neighbours[members[0]]))[:number].astype(np.int64)
        others = members[1:][~np.isin(members[1:], near)][: len(members) - 1 - len(near)]
        return np.concatenate([members[:1], near, others])
