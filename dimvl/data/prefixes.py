"""Prefixes: the regions of one or more images in order, then the context `[CLS] tags [SEP]`.

Letters: B prefixes, I images, M images of several prefixes, R regions, F region feature, C context tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np

from dimvl.data.annotations.records import ImageKey
from dimvl.data.layout import ranges, starts_of
from dimvl.data.tags import RegionWords, TagWriter
from dimvl.regions.records import Detections, Regions
from dimvl.regions.store import RegionStore

PREFIXES_AT_ONCE = 1024
"""Prefixes whose tags are counted at once, which bounds temporary memory."""


@dataclass(frozen=True)
class PrefixImages:
    """The images of B prefixes in a region store, end to end.

    Attributes:
        positions: (M,) int64 in the store.
        counts: (B,) int64 images of each prefix, at least one.
        times: (M,) float32 seconds; None if no image has one.

    """

    positions: np.ndarray
    counts: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def find(cls, store: RegionStore, images: Sequence[ImageKey]) -> Self:
        """Look up the images of B prefixes; raises `UserError` if the store lacks one."""
        positions = store.positions(image_id for image_ids, _ in images for image_id in image_ids)
        counts = np.array([len(image_ids) for image_ids, _ in images], dtype=np.int64)
        seconds = [time for image_ids, times in images for time in times or (0.0,) * len(image_ids)]
        return cls(positions, counts, np.array(seconds, dtype=np.float32) if any(seconds) else None)

    def __len__(self) -> int:
        """Return the number of prefixes B."""
        return len(self.counts)

    def __getitem__(self, prefixes: np.ndarray) -> Self:
        """Return the images of some prefixes, given by number."""
        images = ranges(starts_of(self.counts)[prefixes], self.counts[prefixes])
        times = None if self.times is None else self.times[images]
        return replace(self, positions=self.positions[images], counts=self.counts[prefixes], times=times)

    def sums(self, numbers: np.ndarray) -> np.ndarray:
        """Sum a number of each image (M,) over the images of each prefix: (B,)."""
        return np.add.reduceat(numbers, starts_of(self.counts)) if len(self) else numbers


@dataclass(frozen=True, kw_only=True)
class PrefixRegions(Detections):
    """The regions of the images of one prefix, end to end.

    Attributes:
        image_index: (R,) int64 the image of each region, ascending from 0.
        num_images: number of images; any of them may have no regions.
        times: (R,) float32 seconds of each region's image; None for a model that does not use them.
        tags: False for an example without tags (concept dropout).
        words: False for an example without words in its regions, likewise.

    """

    image_index: np.ndarray
    num_images: int
    times: np.ndarray | None = None
    tags: bool = True
    words: bool = True


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """One or more images and their context.

    Attributes:
        features: (R, F) float16 or float32, or int8 as in the store.
        boxes: (R, 4) float32 corners as fractions.
        image_index: (R,) the image of each region, from 0.
        hidden: (R,) bool, True where the feature is hidden from the model.
        context: (C,) token ids of `[CLS] tags [SEP]`, with tags for each image.
        feature_scales: (R, 1) float32 scales of int8 features; None for others.
        times: (R,) float32 seconds of each region's image; None for a model that does not use them.
        words: words of each region; None for a model that does not use them.

    """

    features: np.ndarray
    boxes: np.ndarray
    image_index: np.ndarray
    hidden: np.ndarray
    context: np.ndarray
    feature_scales: np.ndarray | None = None
    times: np.ndarray | None = None
    words: RegionWords | None = None


class ImageReader:
    """Reads prefixes from a region store.

    Args:
        store: the regions.
        tags: writes the context and the words of regions.
        max_regions: number of regions used of each image, the best ones; 0 for none.
        times: whether the model uses the times of images.
        whole_budget: count the whole budget of tags in `rows`, as version 0.1 did.

    """

    def __init__(
        self,
        store: RegionStore,
        tags: TagWriter,
        max_regions: int,
        times: bool = False,
        whole_budget: bool = False,
    ) -> None:
        self.store = store
        self.tags = tags
        self.max_regions = max_regions
        self.times = times
        self.whole_budget = whole_budget

    def num_regions(self, images: PrefixImages) -> np.ndarray:
        """Regions used in each prefix: (B,)."""
        return images.sums(np.minimum(self.store.num_regions(images.positions), self.max_regions))

    def rows(
        self, images: PrefixImages, untagged: np.ndarray | None = None, hidden: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows of each prefix (B,), an upper bound where regions may be hidden. Only names are read, no features.

        Args:
            images: of the prefixes.
            untagged: (B,) bool, prefixes without tags.
            hidden: (B,) bool, prefixes some of whose regions may be hidden.

        """
        if self.whole_budget:
            return self.num_regions(images) + self.tags.max_length
        room, context = self.tags.room(images.counts), np.full(len(images), 2 + self.tags.prompt)
        tagged = np.flatnonzero((room > 0) & (True if untagged is None else ~untagged))
        for start in range(0, len(tagged), PREFIXES_AT_ONCE):
            chosen = tagged[start : start + PREFIXES_AT_ONCE]
            some = images[chosen]
            may_hide = np.zeros(len(chosen), bool) if hidden is None else hidden[chosen]
            lengths = self._tag_lengths(
                some.positions, np.repeat(room[chosen], some.counts), np.repeat(may_hide, some.counts)
            )
            context[chosen] = 1 + some.sums(lengths + 1) + self.tags.prompt
        return self.num_regions(images) + context

    def _tag_lengths(self, positions: np.ndarray, room: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Word pieces of the tags of images (I,), of which several may be the same: (I,)."""
        kinds = (positions * self.tags.max_length + room) * 2 + hidden
        _, first, places = np.unique(kinds, return_index=True, return_inverse=True)
        found = self.store.read_packed(positions[first], limit=self.max_regions, features=False)
        return self.tags.lengths(names_of(found), found.num_regions, room[first], hidden[first])[places]

    def read(self, images: PrefixImages) -> list[PrefixRegions]:
        """Read the regions of B prefixes at once; their arrays are contiguous, as in a batch."""
        packed = self.store.read_packed(images.positions, limit=self.max_regions)
        index = np.repeat(ranges(np.zeros_like(images.counts), images.counts), packed.num_regions)
        times = None
        if self.times:
            seconds = np.zeros(len(images.positions), np.float32) if images.times is None else images.times
            times = np.repeat(seconds, packed.num_regions)
        bounds = np.cumsum(np.append(0, images.sums(packed.num_regions))).tolist()
        return [
            PrefixRegions(
                num_images=count,
                image_index=index[start:end],
                times=None if times is None else times[start:end],
                **{name: array[start:end] for name, array in packed.arrays.items()},
            )
            for count, (start, end) in zip(images.counts.tolist(), pairwise(bounds), strict=True)
        ]

    def prefix(self, regions: Detections, hidden: np.ndarray | None = None) -> Prefix:
        """Make a prefix; `hidden` (R,) bool are regions that the model may not see, not even by their names."""
        return make_prefix(regions, self.tags, hidden)

    def prefixes(self, images: PrefixImages) -> list[Prefix]:
        """Read B prefixes at once, with nothing hidden."""
        return [self.prefix(regions) for regions in self.read(images)]


def best_regions(regions: Regions, most: int) -> Regions:
    """Keep the first `most` regions, which are the best."""
    return replace(regions, **{name: array[:most] for name, array in regions.arrays.items()})


def join_images(images: Sequence[Detections], times: Sequence[float] | None = None) -> PrefixRegions:
    """Join the regions of the images of one prefix, in order, with the seconds of each."""
    counts = [len(regions) for regions in images]
    arrays = images[0].arrays
    if len(images) > 1:
        arrays = {name: np.concatenate([regions.arrays[name] for regions in images]) for name in arrays}
    return PrefixRegions(
        num_images=len(images),
        image_index=np.repeat(np.arange(len(images)), counts),
        times=None if times is None else np.repeat(np.array(times, dtype=np.float32), counts),
        **arrays,
    )


def names_of(regions: Detections) -> list[np.ndarray]:
    """Return the classes and attributes of regions, as `TagWriter` takes them."""
    return [regions.class_ids, regions.class_scores, regions.attribute_ids, regions.attribute_scores]


def make_prefix(regions: Detections, tags: TagWriter, hidden: np.ndarray | None = None) -> Prefix:
    """Make the prefix of one image, or of several joined ones; tags and words are those of regions not hidden."""
    if not isinstance(regions, PrefixRegions):
        regions = join_images([regions])
    named, index = names_of(regions), regions.image_index
    if hidden is None:
        hidden = np.zeros(len(regions), dtype=bool)
    words = tags.words(named, ~hidden & regions.words)
    if hidden.any():
        named, index = [array[~hidden] for array in named], index[~hidden]
    parts = [named] if regions.tags else []
    if regions.tags and regions.num_images > 1:
        bounds = pairwise(np.searchsorted(index, np.arange(regions.num_images + 1)).tolist())
        parts = [[array[start:end] for array in named] for start, end in bounds]
    return Prefix(
        features=regions.features,
        boxes=regions.boxes,
        image_index=regions.image_index,
        hidden=hidden,
        context=tags.context(parts),
        feature_scales=regions.feature_scales,
        times=regions.times,
        words=words,
    )
