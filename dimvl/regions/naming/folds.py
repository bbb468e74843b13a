"""Models for the images that concepts were trained on: each names those that it was not trained on.

A word is found more surely in the images that its detector has learned by heart than in new ones, so a model that reads
such words while it is trained would trust them too much. A folder of concepts may have further models, `folds/0` and so
on, each trained without a part of the images; `folds/images.json` says which images are in which part.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from dimvl.errors import UserError
from dimvl.files import Strict, check_values, read_sealed, write_sealed
from dimvl.regions.naming.concepts import REMEDY, ConceptNamer
from dimvl.showing import counted

log = logging.getLogger(__name__)

FOLDER = "folds"
IMAGES = "images.json"


class _Images(Strict):
    images: tuple[tuple[str, ...], ...] = Field(min_length=2)


class Folds:
    """The models, and the images of each.

    Args:
        namers: one for each part of the images, trained without it.
        images: ids of the images of each part.

    """

    def __init__(self, namers: Sequence[ConceptNamer], images: Sequence[Sequence[str]]) -> None:
        self.namers = namers
        self.images = images
        self._fold_of = {image: fold for fold, own in enumerate(images) for image in own}

    def __contains__(self, image_id: str) -> bool:
        """Return whether the concepts were trained on an image."""
        return image_id in self._fold_of

    def namer_of(self, image_id: str) -> ConceptNamer | None:
        """Return the model that was trained without an image; None if the image is in no part."""
        fold = self._fold_of.get(image_id)
        return None if fold is None else self.namers[fold]

    def save(self, folder: Path) -> None:
        """Write the models into `folds/` of a folder of concepts."""
        for number, namer in enumerate(self.namers):
            namer.save(folder / FOLDER / str(number))
        write_sealed(folder / FOLDER / IMAGES, {"images": self.images})

    @staticmethod
    def exist(folder: Path) -> bool:
        """Return whether a folder of concepts has such models."""
        return (folder / FOLDER / IMAGES).is_file()

    @classmethod
    def load(cls, folder: Path) -> "Folds":
        """Load what `save` wrote.

        Raises:
            UserError: the concepts have no such models, or a file is damaged.

        """
        file = folder / FOLDER / IMAGES
        if not cls.exist(folder):
            raise UserError(
                f"{folder} has no models for the images that it was trained on; train it with training.folds=5, or "
                "omit --folds"
            )
        images = check_values(read_sealed(file, REMEDY), _Images, file, REMEDY).images
        return cls([ConceptNamer.load(folder / FOLDER / str(number)) for number in range(len(images))], images)


def warn_if_seen(concepts: Path, image_ids: Iterable[str], store: Path, remedy: str) -> None:
    """Warn of images that were named by concepts trained on them, as far as the folder of concepts lists its images."""
    if not Folds.exist(concepts):
        return
    folds = Folds.load(concepts)
    if seen := sum(image_id in folds for image_id in image_ids):
        log.warning(
            "the concepts were trained on %s of %s, and name these more accurately than unseen images; if a model "
            "will be trained on this store, %s",
            *(counted(seen, "image"), store, remedy),
        )
