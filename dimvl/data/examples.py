"""Documents: a prefix, its text(s) and one objective; and how examples become a ragged batch.

Prefix = regions, then context `[CLS] tags [SEP]`. Text positions start at a fixed number after the context budget, so
that tags may come and go without moving the text: the first word stands at `text_start + 1`, the BOS row of a causal
text at `text_start`.

Letters: R regions, F region feature, C context tokens, A answers, K classes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """One or more images and their context.

    Attributes:
        features: (R, F) float16 or float32, or int8 as a store may hold them.
        boxes: (R, 4) float32 corners as fractions.
        image_index: (R,) which image a region is of, from 0.
        hidden: (R,) bool, True where the feature is hidden from the model.
        context: (C,) token ids of `[CLS] tags [SEP]`.
        feature_scales: (R, 1) float32 scales of int8 features; None for others.

    """

    features: np.ndarray
    boxes: np.ndarray
    image_index: np.ndarray
    hidden: np.ndarray
    context: np.ndarray
    feature_scales: np.ndarray | None = None


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
    """Reads images of a region store as prefixes.

    Args:
        store: the regions.
        tags: writes the context.
        max_regions: the best so many are used; 0 for none.

    """

    def __init__(self, store: RegionStore, tags: TagWriter, max_regions: int) -> None:
        self.store = store
        self.tags = tags
        self.max_regions = max_regions

    def num_regions(self, positions: np.ndarray) -> np.ndarray:
        """Regions used of each image: (P,) -> (P,)."""
        return np.minimum(self.store.num_regions(positions), self.max_regions)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Upper bound of prefix rows of each image: (P,) -> (P,)."""
        return self.num_regions(positions) + self.tags.max_length

    def read(self, positions: np.ndarray) -> list[Detections]:
        """Read the best `max_regions` of images (P,), all at once; their arrays lie end to end, as in a batch."""
        return self.store.read_packed(positions, limit=self.max_regions).images()

    def prefix(self, regions: Detections, hidden: np.ndarray | None = None) -> Prefix:
        """Make a prefix; where regions are hidden, tags come from the visible ones only.

        Args:
            regions: of one image.
            hidden: (R,) bool.

        """
        return make_prefix(regions, self.tags, hidden)

    def prefixes(self, positions: np.ndarray) -> list[Prefix]:
        """Read images (P,) at once as prefixes with nothing hidden."""
        return [self.prefix(regions) for regions in self.read(positions)]


def best_regions(regions: Regions, most: int) -> Regions:
    """Keep the first `most` regions; they stand best first."""
    return replace(regions, **{name: array[:most] for name, array in regions.arrays.items()})


def make_prefix(regions: Detections, tags: TagWriter, hidden: np.ndarray | None = None) -> Prefix:
    """Make the prefix of one image; tags come from regions that are not hidden."""
    named = (regions.class_ids, regions.class_scores, regions.attribute_ids, regions.attribute_scores)
    if hidden is None:
        hidden = np.zeros(len(regions), dtype=bool)
    else:
        named = tuple(array[~hidden] for array in named)
    return Prefix(
        features=regions.features,
        boxes=regions.boxes,
        image_index=np.zeros(len(regions), dtype=np.int64),
        hidden=hidden,
        context=tags.context(*named),
        feature_scales=regions.feature_scales,
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
        region_feature_scales=_scales(prefixes),
        region_geometry=torch.from_numpy(geometry_features(_end_to_end([p.boxes for p in prefixes], 4))),
        region_image_index=torch.from_numpy(join([p.image_index for p in prefixes], np.int64)),
        region_hidden=torch.from_numpy(join([p.hidden for p in prefixes], np.bool_)),
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        segments=(torch.arange(len(token_ids)) >= num_context).long(),
        targets={name: spec.kind.gather(chosen(name), spec.width) for name, spec in shape.objectives.items()},
        sources=[example.source for example in examples],
    )


def _scales(prefixes: Sequence[Prefix]) -> Tensor | None:
    """Scales (Nv, 1) of int8 features; None where features are no int8."""
    scales = [prefix.feature_scales for prefix in prefixes if prefix.feature_scales is not None]
    if not scales:
        return None
    assert len(scales) == len(prefixes), "int8 features stand beside others"
    return torch.from_numpy(_end_to_end(scales, 1))


def _end_to_end(arrays: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Join (., width) arrays. Those that lie end to end in memory, as images read at once do, are not copied."""
    arrays = [array for array in arrays if len(array)]
    if not arrays:
        return np.zeros((0, width), np.float32)
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
