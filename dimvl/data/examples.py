"""Examples: a prefix, its texts and one objective; and how examples become a ragged batch.

A prefix is the regions of one or more images, then the context `[CLS] tags [SEP]`. Text positions start at a fixed
number after the context budget, so that the number of tags does not move the text: the first word is at
`text_start + 1`, the BOS row of a causal text at `text_start`.

Letters: B prefixes, M images, R regions, F region feature, C context tokens, A answers, K classes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dimvl.data.annotations.records import ImageKey
from dimvl.data.batch import Batch
from dimvl.data.layout import Layout, ranges, starts_of
from dimvl.data.tags import TagWriter
from dimvl.data.targets import Chosen, TargetSpec, join, lengths
from dimvl.regions.geometry import geometry_features
from dimvl.regions.records import Detections, Regions
from dimvl.regions.store import RegionStore


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Make a random stream from a key alone, so that no rank, worker or batch changes what is drawn."""
    return np.random.Generator(_philox(*key))


def _philox(*key: int | str) -> np.random.Philox:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))


class KeyedUniform:
    """The numbers in [0, 1) that `keyed_generator(*key).random()` gives one after the other, from any place on.

    Philox counts in blocks of four numbers, so those before need not be drawn.
    """

    def __init__(self, *key: int | str) -> None:
        self._philox = _philox(*key)
        self._generator = np.random.Generator(self._philox)
        self._block = 0  # that comes next

    def __getitem__(self, places: slice) -> np.ndarray:
        """Return the numbers (stop - start,) float64 of some places."""
        start, end = places.start // 4, -(-places.stop // 4)
        self._philox.advance((start - self._block) % 2**256)
        self._block = end
        return self._generator.random(4 * (end - start))[places.start - 4 * start : places.stop - 4 * start]


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

    """

    image_index: np.ndarray
    num_images: int
    times: np.ndarray | None = None


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

    """

    features: np.ndarray
    boxes: np.ndarray
    image_index: np.ndarray
    hidden: np.ndarray
    context: np.ndarray
    feature_scales: np.ndarray | None = None
    times: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Text:
    """Token ids of one text and the words to predict in it.

    Attributes:
        token_ids: (T,) input rows.
        places: (M,) rows of this text with a target.
        labels: (M,) the token ids wanted there.
        has_start: True if the first row is the BOS row.

    """

    token_ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    has_start: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prefix, its texts and the targets of one objective.

    Attributes:
        source: what it came from, for messages.
        objective: name of the objective that its targets belong to.
        prefix: images and context.
        texts: one, or any number if `seq2seq`.
        seq2seq: whether the prefix sees only itself, and a text sees the prefix and its own past.
        target: the payload of the objective's kind of target, see `dimvl/data/targets.py`; None where it needs none.

    """

    source: str
    objective: str
    prefix: Prefix
    texts: Sequence[Text]
    seq2seq: bool = False
    target: Any = None


class ImageReader:
    """Reads prefixes from a region store.

    Args:
        store: the regions.
        tags: writes the context.
        max_regions: number of regions used of each image, the best ones; 0 for none.
        times: whether the model uses the times of images.

    """

    def __init__(self, store: RegionStore, tags: TagWriter, max_regions: int, times: bool = False) -> None:
        self.store = store
        self.tags = tags
        self.max_regions = max_regions
        self.times = times

    def num_regions(self, images: PrefixImages) -> np.ndarray:
        """Regions used in each prefix: (B,)."""
        return images.sums(np.minimum(self.store.num_regions(images.positions), self.max_regions))

    def rows(self, images: PrefixImages) -> np.ndarray:
        """Upper bound of the rows of each prefix: (B,)."""
        return self.num_regions(images) + self.tags.max_length

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
        """Make a prefix; `hidden` (R,) bool are regions that the model may not see, not even by their tags."""
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


def make_prefix(regions: Detections, tags: TagWriter, hidden: np.ndarray | None = None) -> Prefix:
    """Make the prefix of one image, or of several joined ones; tags come from regions that are not hidden."""
    if not isinstance(regions, PrefixRegions):
        regions = join_images([regions])
    named = [regions.class_ids, regions.class_scores, regions.attribute_ids, regions.attribute_scores]
    index = regions.image_index
    if hidden is None:
        hidden = np.zeros(len(regions), dtype=bool)
    else:
        named, index = [array[~hidden] for array in named], index[~hidden]
    parts = [named]
    if regions.num_images > 1:
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
    )


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What a model and its task fix about every batch.

    Attributes:
        objectives: objective name -> kind and width of its targets; all are in every batch.
        text_start: position of a text's BOS row.
        feature_width: F.

    """

    objectives: Mapping[str, TargetSpec]
    text_start: int
    feature_width: int


def collate(examples: Sequence[Example], shape: BatchShape) -> Batch:
    """Lay examples out as one ragged batch."""
    prefixes = [example.prefix for example in examples]
    texts = [text for example in examples for text in example.texts]
    layout = Layout(
        num_regions=lengths([prefix.features for prefix in prefixes]),
        num_context=lengths([prefix.context for prefix in prefixes]),
        text_lengths=lengths([text.token_ids for text in texts]),
        text_prefix=np.repeat(np.arange(len(examples)), [len(example.texts) for example in examples]).astype(int),
        seq2seq=np.array([example.seq2seq for example in examples], dtype=bool),
    )
    first_positions = np.array([0] * len(prefixes) + [shape.text_start + (not text.has_start) for text in texts], int)
    positions = ranges(first_positions, np.concatenate([layout.num_context, layout.text_lengths]))
    num_context = int(layout.num_context.sum())
    token_ids = join([prefix.context for prefix in prefixes] + [text.token_ids for text in texts], np.int64)

    def chosen(objective: str) -> Chosen:
        return Chosen(layout, examples, [i for i, example in enumerate(examples) if example.objective == objective])

    return Batch(
        layout=layout,
        region_features=torch.from_numpy(_end_to_end([p.features for p in prefixes], shape.feature_width)),
        region_feature_scales=_optional([p.feature_scales for p in prefixes], 1),
        region_geometry=torch.from_numpy(geometry_features(_end_to_end([p.boxes for p in prefixes], 4))),
        region_image_index=torch.from_numpy(join([p.image_index for p in prefixes], np.int64)),
        region_hidden=torch.from_numpy(join([p.hidden for p in prefixes], np.bool_)),
        region_times=_optional([p.times for p in prefixes]),
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        segments=(torch.arange(len(token_ids)) >= num_context).long(),
        targets={name: spec.kind.gather(chosen(name), spec.width) for name, spec in shape.objectives.items()},
        sources=[example.source for example in examples],
    )


def _optional(arrays: Sequence[np.ndarray | None], *width: int) -> Tensor | None:
    """Join arrays that either all prefixes of a batch have or none."""
    found = [array for array in arrays if array is not None]
    if not found:
        return None
    assert len(found) == len(arrays), "int8 features or times are missing in some prefixes"
    return torch.from_numpy(_end_to_end(found, *width))


def _end_to_end(arrays: Sequence[np.ndarray], *width: int) -> np.ndarray:
    """Join (., *width) arrays. Arrays that are contiguous in memory, as of images read at once, are not copied."""
    arrays = [array for array in arrays if len(array)]
    if not arrays:
        return np.zeros((0, *width), np.float32)
    whole, addresses = arrays[0].base, [array.__array_interface__["data"][0] for array in arrays]
    starts = starts_of(np.array([array.nbytes for array in arrays]), addresses[0])
    if whole is None or addresses != starts.tolist() or any(not _is_piece(array, whole) for array in arrays):
        return np.concatenate(arrays)
    first = (addresses[0] - whole.__array_interface__["data"][0]) // whole.strides[0]
    return whole[first : first + sum(map(len, arrays))]


def _is_piece(array: np.ndarray, whole: np.ndarray) -> bool:
    """Whether an array is some consecutive rows of another."""
    if array.base is not whole or not isinstance(whole, np.ndarray):
        return False
    return (array.dtype, array.shape[1:], array.strides) == (whole.dtype, whole.shape[1:], whole.strides)
