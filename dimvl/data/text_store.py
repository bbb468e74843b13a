"""Texts tokenised once into memory-mapped flat arrays, keyed by the tokenizer and the source files.

Nothing per text lives in Python objects in the loader processes: they open the same few files.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import atomic_folder, read_json, sha256, write_json

logger = logging.getLogger(__name__)
FORMAT = 1


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
        image_ids: (G,) bytes, the images' ids.
        label_offsets: (T + 1,) where each text's labels start.
        label_ids: label ids.
        label_scores: their scores.

    """

    ARRAYS = ("token_ids", "offsets", "text_ids", "groups", "image_ids", "label_offsets", "label_ids", "label_scores")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")
        for name in self.ARRAYS:
            setattr(self, name, np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    token_ids: np.ndarray
    offsets: np.ndarray
    text_ids: np.ndarray
    groups: np.ndarray
    image_ids: np.ndarray
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

    def lengths(self) -> np.ndarray:
        """(T,) number of tokens of each text."""
        return np.diff(self.offsets)

    def group_of(self) -> np.ndarray:
        """(T,) the group (image) of each text."""
        return np.repeat(np.arange(len(self.groups) - 1), np.diff(self.groups))


def text_store(
    cache: Path, tokenizer: Tokenizer, max_tokens: int, sources: Sequence[Path], texts: Sequence[LabelledText]
) -> TextStore:
    """Open the store of these texts, and write it first if it is not there.

    Args:
        cache: folder of the stores.
        tokenizer: how to tokenise.
        max_tokens: longer texts are cut, and a warning counts them.
        sources: the files that the texts come from; their checksums are part of the key.
        texts: what they hold.

    Raises:
        UserError: no texts.

    """
    if not texts:
        raise UserError(
            f"{', '.join(map(str, sources))}: no text for any image of the store; check that they belong together"
        )
    labels = hashlib.sha256(repr([(text.text_id, text.labels) for text in texts]).encode()).hexdigest()
    parts = [str(FORMAT), tokenizer.fingerprint, str(max_tokens), labels, *map(sha256, sources)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
    path = cache / key
    if not (path / "manifest.json").exists():
        _write(path, tokenizer, max_tokens, sources, texts)
    store = TextStore(path)
    if cut := store.manifest["texts_cut"]:
        logger.warning("%d of %d texts are longer than %d tokens and were cut", cut, len(store), max_tokens)
    return store


def _write(
    path: Path, tokenizer: Tokenizer, max_tokens: int, sources: Sequence[Path], texts: Sequence[LabelledText]
) -> None:
    first_seen: dict[str, int] = {}
    for text in texts:
        first_seen.setdefault(text.image_id, len(first_seen))
    texts = sorted(texts, key=lambda text: first_seen[text.image_id])  # stable: the file's order within an image
    encoded = tokenizer.encode_all([text.text for text in texts])
    cut = sum(len(tokens) > max_tokens for tokens in encoded)
    encoded = [tokens[:max_tokens] for tokens in encoded]
    labels = [label for text in texts for label in text.labels]
    group = np.array([first_seen[text.image_id] for text in texts])
    arrays = {
        "token_ids": np.array([token for tokens in encoded for token in tokens], dtype=np.int32),
        "offsets": _offsets([len(tokens) for tokens in encoded]),
        "text_ids": np.array([text.text_id for text in texts], dtype=np.int64),
        "groups": _offsets(np.bincount(group, minlength=len(first_seen))),
        "image_ids": np.array([image_id.encode() for image_id in first_seen]),
        "label_offsets": _offsets([len(text.labels) for text in texts]),
        "label_ids": np.array([label for label, _ in labels], dtype=np.int32),
        "label_scores": np.array([score for _, score in labels], dtype=np.float32),
    }
    with atomic_folder(path) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        manifest = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, "max_tokens": max_tokens, "texts": len(texts)}
        write_json(
            temporary / "manifest.json", manifest | {"texts_cut": cut, "sources": [source.name for source in sources]}
        )


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
