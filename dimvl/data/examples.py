"""Examples: a prefix, its texts and one objective; and how examples become a ragged batch.

Text positions start at a fixed number after the context budget, so that the number of tags does not move the text: the
first word is at `text_start + 1`, the BOS row of a causal text at `text_start`.

Letters: T rows of a text, M targets, F region feature.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.layout import Layout, ranges, starts_of
from dimvl.data.prefixes import Prefix
from dimvl.data.tags import RegionWords
from dimvl.data.targets import Chosen, TargetSpec, join, lengths
from dimvl.regions.geometry import geometry_features


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
        texts: one, or any number if `seq2seq` or `apart`.
        seq2seq: whether the prefix sees only itself, and a text sees the prefix and its own past.
        apart: whether the prefix and each text see only themselves.
        target: the payload of the objective's kind of target, see `dimvl/data/targets.py`; None where it needs none.

    """

    source: str
    objective: str
    prefix: Prefix
    texts: Sequence[Text]
    seq2seq: bool = False
    apart: bool = False
    target: Any = None


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
        apart=np.array([example.apart for example in examples]) if any(each.apart for each in examples) else None,
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
        **_words([p.words for p in prefixes]),
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


def _words(prefixes: Sequence[RegionWords | None]) -> dict[str, Tensor]:
    """Join the words of regions, which either all prefixes of a batch have or none."""
    found = [words for words in prefixes if words is not None]
    if not found:
        return {}
    assert len(found) == len(prefixes), "words of regions are missing in some prefixes"
    counts = np.concatenate([words.counts for words in found])
    return {
        "region_word_ids": torch.from_numpy(np.concatenate([words.token_ids for words in found])),
        "region_word_weights": torch.from_numpy(np.concatenate([words.weights for words in found])),
        "region_word_offsets": torch.from_numpy(np.cumsum(np.append(0, counts))),
    }


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
