"""Texts tokenised once into memory-mapped flat arrays, keyed by the tokenizer and the source files.

Nothing per text or image lives in Python objects in the loader processes: they open the same few files, by their path.
Writing takes the texts a piece at a time; beside the caller's texts it holds some 20 bytes a text and 4 a token.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import atomic_folder, atomic_path, locked, read_json, sha256, write_json, writing
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import decode_id, encode_id

logger = logging.getLogger(__name__)
FORMAT = 2
POSITIONS = "positions-"
TEXTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class LabelledText:
    """One text to store: of which image, under which id, and with which soft labels (label id, score)."""

    text_id: int
    image_id: str
    text: str
    labels: tuple[tuple[int, float], ...] = ()


class TextStore:
    """Tokenised texts, grouped by image in the order in which the images first came.

    Attributes:
        token_ids: (all tokens,) int32, memory-mapped.
        offsets: (T + 1,) where each text's tokens start.
        text_ids: (T,) ids of the captions or questions.
        groups: (G + 1,) where each image's texts start.
        image_bytes: the images' ids as UTF-8, end to end.
        image_offsets: (G + 1,) where each image's id starts.
        label_offsets: (T + 1,) where each text's labels start.
        label_ids: label ids.
        label_scores: their scores.

    """

    ARRAYS = (
        *("token_ids", "offsets", "text_ids", "groups", "image_bytes", "image_offsets"),
        *("label_offsets", "label_ids", "label_scores"),
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")
        for name in self.ARRAYS:
            mapped = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            setattr(self, name, np.asarray(mapped))  # the same memory; slices of the subclass take three times as long
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

    def __len__(self) -> int:
        """Return the number of texts T."""
        return len(self.text_ids)

    def __reduce__(self) -> tuple[type["TextStore"], tuple[Path]]:
        return TextStore, (self.path,)

    def tokens(self, text: int) -> np.ndarray:
        """Token ids of one text, special tokens not included."""
        return self.token_ids[self.offsets[text] : self.offsets[text + 1]]

    def labels(self, text: int) -> tuple[np.ndarray, np.ndarray]:
        """Label ids and scores of one text."""
        span = slice(self.label_offsets[text], self.label_offsets[text + 1])
        return self.label_ids[span], self.label_scores[span]

    @property
    def num_groups(self) -> int:
        """Number of images G."""
        return len(self.groups) - 1

    def lengths(self, texts: slice) -> np.ndarray:
        """Numbers of tokens of some texts, given by start and stop."""
        return np.diff(self.offsets[texts.start : texts.stop + 1])

    def lengths_of(self, groups: slice) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of tokens of all texts of some images, end to end, and where each image's start."""
        bounds = self.groups[groups.start : groups.stop + 1]
        return self.lengths(slice(bounds[0], bounds[-1])), bounds[:-1] - bounds[0]

    def longest(self) -> int:
        """Number of tokens of the longest text."""
        starts = range(0, len(self), TEXTS_AT_ONCE)
        return max(int(self.lengths(slice(start, start + TEXTS_AT_ONCE)).max()) for start in starts)

    def positions_in(self, store: RegionStore) -> np.ndarray:
        """Positions (G,) int64 of all images in a region store.

        They are looked up once, which takes microseconds an image, and then mapped from a file beside the texts. Where
        none can be written, as in a folder of texts that others own, this process keeps them.

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
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))

    def image_id(self, group: int) -> str:
        """Id of one image."""
        return decode_id(self.image_bytes[self.image_offsets[group] : self.image_offsets[group + 1]].tobytes())

    def image_ids(self) -> Iterator[str]:
        """Ids of all images, one after the other, so that they need not be in memory together."""
        return map(self.image_id, range(self.num_groups))


def text_store(
    cache: Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    progress: Progress | None = None,
) -> TextStore:
    """Open the store of these texts, and write it first if it is not there or is damaged.

    Args:
        cache: folder of the stores.
        tokenizer: how to tokenise.
        max_tokens: longer texts are cut, and a warning counts them.
        sources: the files that the texts come from; their checksums are part of the key.
        texts: what they hold.
        progress: called with texts tokenised and in total, where they are.

    Raises:
        UserError: no texts.

    """
    if not texts:
        raise UserError(
            f"{', '.join(map(str, sources))}: no text for any image of the store; check that they belong together"
        )
    hasher = hashlib.sha256()
    for part in (FORMAT, tokenizer.fingerprint, max_tokens, *map(sha256, sources)):
        hasher.update(f"{part}\n".encode())
    for text in texts:
        hasher.update(repr((text.text_id, text.image_id, text.labels)).encode())
    path = cache / hasher.hexdigest()[:20]
    with locked(cache):  # on a node with a cache of its own all ranks but 0 of the first come here at once
        store = open_text_store(path)
        if store is None:
            _write(path, tokenizer, max_tokens, sources, texts, progress or (lambda done, total: None))
            store = TextStore(path)
    if cut := store.manifest["texts_cut"]:
        logger.warning("%d of %d texts are longer than %d tokens and were cut", cut, len(store), max_tokens)
    return store


def open_text_store(path: Path) -> TextStore | None:
    """Open a store if it is there with every file as it was written; a damaged one is told."""
    if not _is_sound(path):
        return None
    for file in path.glob(f"{POSITIONS}*.npy"):
        if not _matches(file):
            logger.warning("%s is damaged; it is made again", file)
            with writing(file):
                file.unlink(missing_ok=True)  # another process may have done it
    return TextStore(path)


def _write_positions(file: Path, positions: np.ndarray) -> None:
    with atomic_path(file) as temporary:
        with temporary.open("wb") as opened:
            np.save(opened, positions, allow_pickle=False)
        write_json(file.with_suffix(".json"), {"sha256": sha256(temporary)})


def _matches(positions: Path) -> bool:
    try:
        return bool(read_json(positions.with_suffix(".json"))["sha256"] == sha256(positions))
    except (UserError, OSError, KeyError, TypeError):
        return False


def _is_sound(path: Path) -> bool:
    if not (path / "manifest.json").exists():
        return False
    try:
        manifest = read_json(path / "manifest.json")
        sound = all(sha256(path / f"{name}.npy") == manifest["sha256"][name] for name in TextStore.ARRAYS)
        sound = sound and isinstance(manifest["texts_cut"], int)
    except (UserError, OSError, KeyError, TypeError):
        sound = False
    if not sound:
        logger.warning("the tokenised texts in %s are damaged; they are made again", path)
    return sound


def _write(
    path: Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    progress: Progress,
) -> None:
    first_seen: dict[str, int] = {}
    groups = np.fromiter((first_seen.setdefault(text.image_id, len(first_seen)) for text in texts), dtype=np.int64)
    image_ids = [encode_id(image_id) for image_id in first_seen]
    del first_seen
    order = np.argsort(groups, kind="stable")  # the file's order within an image
    tokens, lengths, cut = _encode(tokenizer, max_tokens, texts, order, progress)

    def labels(place: int, dtype: type) -> np.ndarray:
        return np.fromiter((label[place] for index in order for label in texts[index].labels), dtype=dtype)

    arrays = {
        "token_ids": tokens,
        "offsets": _offsets(lengths),
        "text_ids": np.fromiter((texts[index].text_id for index in order), dtype=np.int64),
        "groups": _offsets(np.bincount(groups)),
        "image_bytes": np.frombuffer(b"".join(image_ids), dtype=np.uint8),
        "image_offsets": _offsets([len(image_id) for image_id in image_ids]),
        "label_offsets": _offsets([len(texts[index].labels) for index in order]),
        "label_ids": labels(0, np.int32),
        "label_scores": labels(1, np.float32),
    }
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
        write_json(temporary / "manifest.json", manifest | {"sha256": checksums})


def _encode(
    tokenizer: Tokenizer,
    max_tokens: int,
    texts: Sequence[LabelledText],
    order: np.ndarray,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokenise in an order, a piece at a time: all token ids end to end, the lengths (T,), and how many were cut."""
    tokens, lengths, cut = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int64)], 0
    for start in range(0, len(order), TEXTS_AT_ONCE):
        encoded = tokenizer.encode_all([texts[index].text for index in order[start : start + TEXTS_AT_ONCE]])
        cut += sum(len(ids) > max_tokens for ids in encoded)
        kept = [ids[:max_tokens] for ids in encoded]
        lengths.append(np.array([len(ids) for ids in kept], dtype=np.int64))
        tokens.append(np.fromiter((token for ids in kept for token in ids), dtype=np.int32))
        progress(min(start + TEXTS_AT_ONCE, len(order)), len(order))
    return np.concatenate(tokens), np.concatenate(lengths), cut


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
