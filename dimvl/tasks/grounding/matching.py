"""Which regions of the store a phrase refers to: those whose intersection over union with one of its boxes is above .5.

So ground-truth and detected boxes need no other code: the first are a store that `dimvl extract --boxes` made. A phrase
that no region covers cannot be found with these regions; the share of the others is the upper bound of the accuracy.

Letters: R regions, P boxes of a phrase.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dimvl.data.annotations import Phrase
from dimvl.data.annotations.phrases import check_inside
from dimvl.regions.geometry import area, clip, iou, pixels_to_fractions
from dimvl.regions.store import RegionStore

ENOUGH = 0.5
"""A region is right if its IoU with a box of the phrase is above this."""
IMAGES_AT_ONCE = 256
PERSON = "person"
REMEDY = (
    "give boxes x1, y1, x2, y2 in pixels of the image that the store was made of, or its width and height with them"
)


class Covered(NamedTuple):
    """What the regions of a store allow for one phrase.

    Attributes:
        boxes: (P, 4) of the phrase, as fractions of the image.
        right: regions, by number, that cover one of the boxes.
        guess: a region chosen without the phrase: the largest person or, in an image without one, the largest region;
            -1 if there is none.

    """

    boxes: np.ndarray
    right: np.ndarray
    guess: int


def is_right(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each of the boxes (R, 4) covers one of the targets (P, 4): (R,) bool; coordinates of one unit."""
    return np.asarray((iou(boxes.astype(np.float64), targets.astype(np.float64)) > ENOUGH).any(axis=1))


def covered(phrases: Sequence[Phrase], store: RegionStore, max_regions: int) -> list[Covered]:
    """Match the boxes of phrases with the first `max_regions` regions of their images.

    Raises:
        UserError: a box outside its image.

    """
    positions = store.positions(phrase.image_id for phrase in phrases)
    by_image: dict[int, list[int]] = {}
    for place, position in enumerate(positions.tolist()):
        by_image.setdefault(position, []).append(place)
    person = next((number for number, name in enumerate(store.extractor.classes) if name.lower() == PERSON), -2)
    result: dict[int, Covered] = {}
    for position, size, boxes, classes in _regions(store, np.array(list(by_image), np.int64), max_regions):
        guess = _guess(boxes, classes == person)
        for place in by_image[position]:
            phrase = phrases[place]
            own = phrase.size or size
            check_inside(phrase.boxes, own, phrase.name, f"image {phrase.image_id}", REMEDY)
            targets = clip(pixels_to_fractions(np.array(phrase.boxes, np.float64).reshape(-1, 4), *own))
            result[place] = Covered(targets, np.flatnonzero(is_right(boxes, targets)), guess)
    return [result[place] for place in range(len(phrases))]


def _regions(
    store: RegionStore, positions: np.ndarray, most: int
) -> Iterator[tuple[int, tuple[int, int], np.ndarray, np.ndarray]]:
    """Yield position, size, boxes (R, 4) and best classes (R,) of images."""
    for start in range(0, len(positions), IMAGES_AT_ONCE):
        some = positions[start : start + IMAGES_AT_ONCE]
        found = store.read_packed(some, limit=most, features=False)
        for position, size, one in zip(some.tolist(), store.sizes(some).tolist(), found.images(), strict=True):
            best = one.class_ids[:, 0] if one.class_ids.shape[1] else np.full(len(one), -1)
            yield position, (size[0], size[1]), one.boxes, best


def _guess(boxes: np.ndarray, people: np.ndarray) -> int:
    if not len(boxes):
        return -1
    return int(np.where(people, area(boxes), -1.0).argmax() if people.any() else area(boxes).argmax())
