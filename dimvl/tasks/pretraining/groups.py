"""Groups of images for the contrastive objective, drawn by seed, epoch and image alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimvl.data.align_targets import IGNORED, OTHER, OWN, Member
from dimvl.data.examples import Example, KeyedUniform, keyed_generator
from dimvl.data.prefixes import Prefix
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.tasks.base import plain_text
from dimvl.tasks.pretraining.config import ContrastiveConfig
from dimvl.tasks.pretraining.hard_negatives import HardNegatives


def check_group(config: ContrastiveConfig, images: int) -> None:
    """Refuse groups of more than the `images` that have captions."""
    if images < config.group:
        raise UserError(f"contrastive.group is {config.group} but only {images} images have captions; lower it")


@dataclass
class Groups:
    """Contrastive groups: group g has image g and others drawn for it, and captions drawn for each.

    Args:
        captions: tokenised captions, grouped by image.
        config: size of a group.
        limit: maximum number of captions of an image.
        tokenizer: the model's tokenizer.
        seed: seed of the run.
        hard: draws a share of the members from those most like the image; None for none.

    Raises:
        UserError: there are fewer images than a group needs.

    """

    captions: TextStore
    config: ContrastiveConfig
    limit: int
    tokenizer: Tokenizer
    seed: int
    hard: HardNegatives | None = None

    def __post_init__(self) -> None:
        """Check the number of images."""
        self._drawn: tuple[int, KeyedUniform] | None = None
        check_group(self.config, self.captions.num_groups)

    def members(self, epoch: int, index: int) -> np.ndarray:
        """Return the images of one group, its own first: (K,), no image twice.

        The images after it, around the end of the data, are divided into K - 1 stretches, and one is drawn from each.
        """
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, KeyedUniform(self.seed, "groups", epoch))
        images, others = self.captions.num_groups, self.config.group - 1
        edges = 1 + np.arange(others + 1) * (images - 1) // others
        drawn = self._drawn[1][index * others : (index + 1) * others]
        offsets = edges[:-1] + (drawn * np.diff(edges)).astype(np.int64)
        members = np.append(index, (index + offsets) % images)
        return members if self.hard is None else self.hard.replace(epoch, members)

    def text_rows(self, images: np.ndarray) -> np.ndarray:
        """Upper bound of the rows of the captions drawn for images (B,): (B,)."""
        lengths, starts = self.captions.lengths_of_each(images)
        number = np.minimum(np.diff(np.append(starts, len(lengths))), self.limit)
        return number * (np.maximum.reduceat(lengths, starts) + 1)

    def examples(self, epoch: int, members: np.ndarray, prefixes: Sequence[Prefix]) -> list[Example]:
        """Build the examples of a group (K,), one for each image."""
        generator = keyed_generator(self.seed, "captions of a group", epoch, int(members[0]))
        bounds = [self.captions.groups[image : image + 2] for image in members.tolist()]
        drawn = [np.sort(generator.permutation(np.arange(*ends))[: self.limit]) for ends in bounds]
        relations = self._relations(members, drawn)
        return [
            Example(
                source=self.captions.describe(image),
                objective="contrastive",
                prefix=prefix,
                texts=[
                    plain_text(self.captions.tokens(text).astype(np.int64), self.tokenizer) for text in own.tolist()
                ],
                apart=True,
                target=Member(place == 0, relations[place]),
            )
            for place, (image, prefix, own) in enumerate(zip(members.tolist(), prefixes, drawn, strict=True))
        ]

    def _relations(self, members: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
        """Relations (K, T) of the images of a group to the texts drawn for them.

        A text of another image is ignored if this image has an equal one, or if both have an image in common.
        """
        owners = np.repeat(np.arange(len(members)), [len(own) for own in drawn])
        relations = np.full((len(members), len(owners)), OTHER, dtype=np.int8)
        having: dict[bytes, list[int]] = {}  # text -> places of the images that have it
        for place, image in enumerate(members.tolist()):
            for text in {
                self.captions.tokens(text).tobytes() for text in range(*self.captions.groups[image : image + 2])
            }:
                having.setdefault(text, []).append(place)
        for column, text in enumerate(np.concatenate(drawn).tolist()):
            relations[having[self.captions.tokens(text).tobytes()], column] = IGNORED
        for place, other in self.captions.pairs_with_common_images(members):
            relations[place, owners == other] = IGNORED
        relations[owners, np.arange(len(owners))] = OWN
        return relations
