"""Texts tokenised once into memory-mapped flat arrays, in a folder named by tokenizer, source files and labels.

Loader processes hold no Python object per text or image: they map the same few files. Texts are written in pieces; in
addition to the caller's texts this takes about 20 bytes per text and 4 per token.

Letters: T texts, G groups (texts about the same images), I images, M images of all groups together.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import ClassVar

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.annotations.records import ImageKey, name_images
from dimvl.data.layout import ranges, starts_of
from dimvl.data.prefixes import PrefixImages
from dimvl.data.text_arrays import TEXTS_AT_ONCE, text_arrays
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.fields import Id
from dimvl.files import (
    Strict,
    atomic_folder,
    atomic_path,
    locked,
    open_regular,
    read_sealed_as,
    sha256,
    write_sealed,
    writing,
)
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import decode_id

logger = logging.getLogger(__name__)
FORMAT = 2
POSITIONS = "positions-"
LARGEST = 2**40
"""Bytes of an array: that many tokens of a text store are more than any corpus of captions has."""


@dataclass(frozen=True)
class LabelledText:
    """One text to store: its id, its images with their times in seconds, and its soft labels (label id, score)."""

    text_id: Id
    image_ids: tuple[str, ...]
    text: str
    labels: tuple[tuple[int, float], ...] = ()
    times: tuple[float, ...] = ()

    @property
    def images(self) -> ImageKey:
        """What texts of one group have in common."""
        return self.image_ids, self.times


class TextManifest(Strict):
    """The content of `manifest.json`; `sha256` has the checksum of each array by name."""

    format: int
    tokenizer: str
    max_tokens: int
    texts: int
    texts_cut: int
    sources: list[str]
    sha256: dict[str, str]


class Positions(Strict):
    """The content of the file beside the positions of the images in a region store: their checksum."""

    sha256: str


class TextStore:
    """Tokenised texts, grouped by their images and times, in the order in which the groups first occur.

    Attributes:
        token_ids: (all tokens,) int32, memory-mapped.
        offsets: (T + 1,) where each text's tokens start.
        text_ids: (T,) ids of the captions or questions, for messages: int64, or UTF-8 if one is text or larger.
        groups: (G + 1,) where each group's texts start.
        image_bytes: the images' ids as UTF-8, end to end.
        image_offsets: (I + 1,) where each image's id starts.
        label_offsets: (T + 1,) where each text's labels start.
        label_ids: label ids.
        label_scores: their scores.
        group_offsets: (G + 1,) where each group's images start; None if group g is just image g.
        group_images: (M,) image numbers; None likewise.
        group_times: (M,) float32 seconds, 0 where unknown; None likewise.

    """

    ARRAYS = (
        *("token_ids", "offsets", "text_ids", "groups", "image_bytes", "image_offsets"),
        *("label_offsets", "label_ids", "label_scores"),
    )
    GROUP_ARRAYS = ("group_offsets", "group_images", "group_times")
    """Only in the folder if a group has several images, or times."""
    DTYPES: ClassVar = {
        **{"token_ids": np.int32, "image_bytes": np.uint8, "label_ids": np.int32},
        **{"label_scores": np.float32, "group_times": np.float32},
    }
    """Types of the arrays; int64 where none is given. Ids of texts may be UTF-8 instead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_sealed_as(path / "manifest.json", TextManifest, "remove this folder; it is written again")
        self.group_offsets = self.group_images = self.group_times = None
        grouped = self.GROUP_ARRAYS[0] in self.manifest.sha256
        for name in (*self.ARRAYS, *(self.GROUP_ARRAYS if grouped else ())):
            setattr(self, name, _mapped(path / f"{name}.npy", self.DTYPES.get(name, np.int64)))
        self._positions: dict[str, np.ndarray] = {}

    token_ids: np.ndarray
    offsets: np.ndarray
    text_ids: np.ndarray
    groups: np.ndarray
    image_bytes: np.ndarray
    image_offsets: np.ndarray
    label_offsets: np.ndarray
    label_ids: np.ndarray
    label_scores: np.ndarray
    group_offsets: np.ndarray | None
    group_images: np.ndarray | None
    group_times: np.ndarray | None

    def __len__(self) -> int:
        """Return the number of texts T."""
        return len(self.text_ids)

    def __reduce__(self) -> tuple[type["TextStore"], tuple[Path]]:
        return TextStore, (self.path,)

    def tokens(self, text: int) -> np.ndarray:
        """Token ids of one text, without special tokens."""
        return self.token_ids[self.offsets[text] : self.offsets[text + 1]]

    def labels(self, text: int) -> tuple[np.ndarray, np.ndarray]:
        """Label ids and scores of one text."""
        span = slice(self.label_offsets[text], self.label_offsets[text + 1])
        return self.label_ids[span], self.label_scores[span]

    @property
    def num_groups(self) -> int:
        """Number of groups G."""
        return len(self.groups) - 1

    def lengths(self, texts: slice) -> np.ndarray:
        """Token counts of the texts in a slice."""
        return np.diff(self.offsets[texts.start : texts.stop + 1])

    def lengths_of(self, groups: slice) -> tuple[np.ndarray, np.ndarray]:
        """Token counts of all texts of the groups in a slice, end to end, and where each group starts."""
        bounds = self.groups[groups.start : groups.stop + 1]
        return self.lengths(slice(bounds[0], bounds[-1])), bounds[:-1] - bounds[0]

    def lengths_of_each(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token counts of all texts of any groups (B,), end to end, and where each group starts (B,)."""
        counts = self.groups[groups + 1] - self.groups[groups]
        texts = ranges(self.groups[groups], counts)
        return self.offsets[texts + 1] - self.offsets[texts], starts_of(counts)

    def longest(self) -> int:
        """Token count of the longest text."""
        starts = range(0, len(self), TEXTS_AT_ONCE)
        return max(int(self.lengths(slice(start, start + TEXTS_AT_ONCE)).max()) for start in starts)

    def images_in(self, store: RegionStore, groups: np.ndarray) -> PrefixImages:
        """Images of groups (B,) in a region store; raises like `positions_in`."""
        positions = self.positions_in(store)
        if self.group_offsets is None or self.group_images is None or self.group_times is None:
            return PrefixImages(positions[groups], np.ones(len(groups), dtype=np.int64))
        counts = self.group_offsets[groups + 1] - self.group_offsets[groups]
        members = ranges(self.group_offsets[groups], counts)
        return PrefixImages(positions[self.group_images[members]], counts, self.group_times[members])

    def share_images(self, group: int, other: int) -> bool:
        """Whether two groups have an image in common."""
        return not set(self._images(group)).isdisjoint(self._images(other))

    def pairs_with_common_images(self, groups: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the places of two different ones of the groups (B,) that have an image in common, in both orders."""
        if self.group_offsets is None:
            return
        having: dict[int, list[int]] = {}
        for place, group in enumerate(groups.tolist()):
            for image in set(self._images(group)):
                having.setdefault(image, []).append(place)
        for places in having.values():
            yield from permutations(places, 2)

    def positions_in(self, store: RegionStore) -> np.ndarray:
        """Positions (I,) int64 of all images in a region store.

        They are looked up once, which takes microseconds per image, and then mapped from a file next to the texts. If
        the file cannot be written, as in a folder of another user, each process keeps them in memory.

        Raises:
            UserError: the region store lacks an image.

        """
        if store.fingerprint not in self._positions:
            self._positions[store.fingerprint] = self._look_up(store)
        return self._positions[store.fingerprint]

    def _look_up(self, store: RegionStore) -> np.ndarray:
        file = self.path / f"{POSITIONS}{store.fingerprint}.npy"
        if not file.exists():
            positions = store.positions(self.image_ids())
            try:
                _write_positions(file, positions)
            except UserError as error:
                logger.warning("%s; each process keeps them in its own memory", error)
                return positions
        return _mapped(file, np.int64)

    def text_id(self, text: int) -> str:
        """Id of one text, for messages."""
        own = self.text_ids[text]
        return own.decode(errors="replace") if isinstance(own, bytes) else str(own)

    def describe(self, group: int) -> str:
        """Name the images of a group in a message: `image 17`, or `images 17, 18`."""
        return name_images([self.image_id(image) for image in self._images(group)])

    def image_id(self, image: int) -> str:
        """Id of one image."""
        return decode_id(self.image_bytes[self.image_offsets[image] : self.image_offsets[image + 1]].tobytes())

    def image_ids(self) -> Iterator[str]:
        """Ids of all images, one at a time."""
        return map(self.image_id, range(len(self.image_offsets) - 1))

    @property
    def is_consistent(self) -> bool:
        """Whether the arrays fit together, so that no index leads outside of them."""
        parts = [(self.offsets, self.token_ids), (self.groups, self.text_ids), (self.image_offsets, self.image_bytes)]
        parts += [(self.label_offsets, self.label_ids), (self.label_offsets, self.label_scores)]
        owners = [(self.offsets, len(self)), (self.label_offsets, len(self))]
        images = np.arange(self.num_groups)
        if self.group_offsets is not None and self.group_images is not None and self.group_times is not None:
            parts += [(self.group_offsets, self.group_images), (self.group_offsets, self.group_times)]
            owners, images = [*owners, (self.group_offsets, self.num_groups)], self.group_images
        return (
            all(len(starts) and starts[0] == 0 and starts[-1] == len(values) for starts, values in parts)
            and all((np.diff(starts) >= 0).all() for starts, _ in parts)
            and all(len(starts) == number + 1 for starts, number in owners)
            and (not len(images) or (images.min() >= 0 and images.max() < len(self.image_offsets) - 1))
        )

    def _images(self, group: int) -> list[int]:
        if self.group_offsets is None or self.group_images is None:
            return [group]
        images: list[int] = self.group_images[self.group_offsets[group] : self.group_offsets[group + 1]].tolist()
        return images


def text_store(
    cache: Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    progress: Progress | None = None,
) -> TextStore:
    """Open the store of these texts; write it first if it is missing or damaged.

    Args:
        cache: folder of the stores.
        tokenizer: the model's tokenizer.
        max_tokens: longer texts are cut, and a warning counts them.
        sources: the files that the texts come from; their checksums are part of the key.
        texts: the texts of these files.
        progress: called with texts tokenised and in total, while they are.

    Raises:
        UserError: no texts, or one of which the tokenizer makes no token.

    """
    if not texts:
        raise UserError(
            f"{', '.join(map(str, sources))}: no text whose images are in the store; give files that belong together"
        )
    hasher = hashlib.sha256()
    for part in (FORMAT, tokenizer.fingerprint, max_tokens, *map(sha256, sources)):
        hasher.update(f"{part}\n".encode())
    for text in texts:
        plain = len(text.image_ids) == 1 and not text.times
        hasher.update(repr((text.text_id, text.image_ids[0] if plain else text.images, text.labels)).encode())
    path = cache / hasher.hexdigest()[:20]
    with locked(cache):  # on nodes with a cache of their own, several ranks arrive here at once
        store = open_text_store(path)
        if store is None:
            _write(path, tokenizer, max_tokens, sources, texts, progress or (lambda done, total: None))
            store = TextStore(path)
    if cut := store.manifest.texts_cut:
        logger.warning("%d of %d texts are longer than %d tokens and were truncated", cut, len(store), max_tokens)
    return store


def open_text_store(path: Path) -> TextStore | None:
    """Open a store if every file is as it was written; None if it is missing or, with a warning, damaged."""
    if not (path / "manifest.json").exists() or (store := _sound_store(path)) is None:
        return None
    for file in path.glob(f"{POSITIONS}*.npy"):
        if not _matches(file):
            logger.warning("%s is damaged; it is written again", file)
            with writing(file):
                file.unlink(missing_ok=True)  # another process may have removed it
    return store


def _write_positions(file: Path, positions: np.ndarray) -> None:
    with atomic_path(file) as temporary:
        with temporary.open("wb") as opened:
            np.save(opened, positions, allow_pickle=False)
        write_sealed(file.with_suffix(".json"), {"sha256": sha256(temporary)})


def _matches(positions: Path) -> bool:
    try:
        return read_sealed_as(positions.with_suffix(".json"), Positions, "").sha256 == sha256(positions)
    except UserError:
        return False


def _sound_store(path: Path) -> TextStore | None:
    try:
        store = TextStore(path)
        names, checksums = (*TextStore.ARRAYS, *TextStore.GROUP_ARRAYS), store.manifest.sha256
        complete = checksums.keys() in ({*names}, {*TextStore.ARRAYS}) and store.is_consistent
        if complete and all(sha256(path / f"{name}.npy") == value for name, value in checksums.items()):
            return store
    except UserError:
        pass
    logger.warning("the tokenised texts in %s are damaged; they are written again", path)
    return None


def _mapped(file: Path, dtype: type) -> np.ndarray:
    """Map an array (L,) of a file; a `UserError` if that holds something else."""
    open_regular(file, LARGEST).close()
    try:
        array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))  # slices of the subclass are slow
    except Exception as error:  # numpy's parser of headers raises many types
        raise UserError(f"{file} is damaged ({error}); remove its folder, and it is written again") from None
    is_text = file.stem == "text_ids" and array.dtype.kind == "S"
    if (array.dtype != dtype and not is_text) or array.ndim != 1:
        raise UserError(f"{file} is damaged: it has other values than expected; remove its folder")
    return array


def _write(
    path: Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    progress: Progress,
) -> None:
    arrays, cut = text_arrays(tokenizer, max_tokens, ", ".join(map(str, sources)), texts, progress)
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "max_tokens": max_tokens,
        "texts": len(texts),
        "texts_cut": cut,
        "sources": [source.name for source in sources],
    }
    with atomic_folder(path) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: sha256(temporary / f"{name}.npy") for name in arrays}
        write_sealed(temporary / "manifest.json", manifest | {"sha256": checksums})
