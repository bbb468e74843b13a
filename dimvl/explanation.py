"""The regions behind a result or a word: by how much a probability drops without each, or how similar each is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dimvl.data.prefixes import PrefixRegions
from dimvl.regions.display import picture, safe, table
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.records import Detections, Extractor, Regions


class RegionDrop(NamedTuple):
    """A region and how much a result depends on it.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the upright image.
        name: class of the region; empty if unknown.
        attributes: attributes in reading order.
        score: probability of the class.
        probability_drop: probability of the result minus its probability without the region and its tags; of a
            caption, the difference of log-probabilities.
        image: number of its image in a tuple of several, from 0.
        word_drops: the same of each word of a caption; empty for other results.

    """

    box: tuple[float, float, float, float]
    name: str
    attributes: tuple[str, ...]
    score: float
    probability_drop: float
    image: int = 0
    word_drops: tuple[float, ...] = ()

    def record(self, logarithms: bool = False) -> dict[str, Any]:
        """Return the values for JSON; logarithms are called so."""
        values = self._asdict()
        words, drop = list(values.pop("word_drops")), values.pop("probability_drop")
        return values | (
            {"log_probability_drop": drop, "word_drops": words} if logarithms else {"probability_drop": drop}
        )


@dataclass(frozen=True)
class Explanation:
    """A result and the drop of its probability when each region is removed, the largest drop first.

    Attributes:
        result: what the predictor returns: an answer, a caption, ...
        probability: how probable the model finds it, or the log-probability of a caption.
        regions: the regions.
        words: the words of a caption; empty for other results.
        logarithms: whether `probability` and the drops are log-probabilities, as those of captions.
        images: the regions of each image, to be shown.

    """

    result: Any
    probability: float
    regions: list[RegionDrop]
    words: tuple[str, ...] = ()
    logarithms: bool = False
    images: tuple[Regions, ...] = field(default=(), repr=False, compare=False)

    def _repr_html_(self) -> str:
        kind = "log-probability" if self.logarithms else "probability"
        drops = [region.probability_drop for region in self.regions]
        head = f"<p><b>{safe(getattr(self.result, 'text', self.result))}</b> ({kind} {safe(self.probability)})</p>"
        return head + shown(self.images, self.regions, drops, f"drop of {kind}")


@dataclass(frozen=True)
class Alignment:
    """The words of a text and the regions of an image, and how similar they are.

    Attributes:
        words: L words.
        regions: R regions, in the order of the image; their `probability_drop` is 0.
        similarities: (L, R) cosines.

    """

    words: list[str]
    regions: list[RegionDrop]
    similarities: np.ndarray


@dataclass(frozen=True)
class Grounding:
    """The regions that a phrase refers to.

    Attributes:
        regions: the most probable ones, best first; their `probability_drop` is 0.
        probabilities: of these.
        nowhere: probability that no region fits; 0 for a model that always finds one.
        images: the regions of each image, to be shown.

    """

    regions: list[RegionDrop]
    probabilities: list[float]
    nowhere: float
    images: tuple[Regions, ...] = field(default=(), repr=False, compare=False)

    def _repr_html_(self) -> str:
        return shown(self.images, self.regions, self.probabilities, "probability")


def shown(images: Sequence[Regions], regions: Sequence[RegionDrop], values: Sequence[float], name: str) -> str:
    """Return images with regions, the clearer the higher their value, and a table of these, as HTML."""
    named = [" ".join([*region.attributes, region.name]) for region in regions]
    highest, parts, numbers = max([*values, 1e-9]), [], [0] * len(regions)
    for place, image in enumerate(images):
        own = [index for index, region in enumerate(regions) if region.image == place]
        for number, index in enumerate(own, start=1):
            numbers[index] = number
        boxes = np.array([regions[index].box for index in own]).reshape(-1, 4)
        size = (image.width, image.height)
        clear = [max(0.1, values[index] / highest) for index in own]
        source = None if image.origin is None else image.origin.image
        parts.append(picture(source, size, boxes / (size * 2), [named[index] for index in own], clear))
    rows = [
        (f"{region.image + 1}.{number}" if len(images) > 1 else number, words, value)
        for region, number, words, value in zip(regions, numbers, named, values, strict=True)
    ]
    return "".join(parts) + table(("", "region", name), rows)


AnyRegions = TypeVar("AnyRegions", bound=Detections)


def without(regions: AnyRegions, place: int) -> AnyRegions:
    """Remove a region."""
    arrays: dict[str, Any] = {
        name: np.delete(value, place, axis=0) for name, value in vars(regions).items() if isinstance(value, np.ndarray)
    }
    return replace(regions, **arrays)


def describe(
    extractor: Extractor,
    images: Sequence[Regions],
    regions: PrefixRegions,
    place: int,
    drop: float,
    words: Sequence[float] = (),
) -> RegionDrop:
    """Describe a region and the drops without it; `regions` are those of `images`, joined."""
    number = int(regions.image_index[place])
    image = images[number]
    box = fractions_to_pixels(regions.boxes[place], image.width, image.height).tolist()
    class_ids = regions.class_ids[place]
    known = bool(len(class_ids)) and class_ids[0] >= 0
    return RegionDrop(
        box=(box[0], box[1], box[2], box[3]),
        name=extractor.classes[class_ids[0]] if known else "",
        attributes=tuple(extractor.attributes[index] for index in regions.attribute_ids[place] if index >= 0),
        score=float(regions.class_scores[place][0]) if known else 0.0,
        probability_drop=drop,
        image=number,
        word_drops=tuple(words),
    )


def aligned(extractor: Extractor, images: Sequence[Regions], regions: PrefixRegions, found: Any) -> Alignment:
    """Describe the result (words, similarities) of the ability `align`; `regions` are those of `images`, joined."""
    words, similarities = found
    described = [describe(extractor, images, regions, place, 0.0) for place in range(len(regions))]
    return Alignment(words, described, similarities)


def grounded(
    extractor: Extractor, images: Sequence[Regions], regions: PrefixRegions, found: np.ndarray, top: int
) -> Grounding:
    """Describe the best regions of the result of the ability `ground`; `regions` are those of `images`, joined."""
    best = np.argsort(-found[: len(regions)], kind="stable")[:top].tolist()
    described = [describe(extractor, images, regions, place, 0.0) for place in best]
    return Grounding(described, found[best].tolist(), float(found[len(regions) :].sum()), tuple(images))
