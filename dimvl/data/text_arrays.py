"""Texts as the flat arrays of a text store; see `TextStore` for what each holds."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.annotations.records import ImageKey, name_images
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.fields import Id
from dimvl.regions.store.format import encode_id
from dimvl.showing import short

if TYPE_CHECKING:
    from dimvl.data.text_store import LabelledText

TEXTS_AT_ONCE = 10_000
ID_BYTES = 100
"""Bytes of a text's id that are kept, since every id takes as many as the longest."""


def text_arrays(
    tokenizer: Tokenizer, max_tokens: int, place: str, texts: Sequence["LabelledText"], progress: Progress
) -> tuple[dict[str, np.ndarray], int]:
    """Tokenise texts; return the arrays by name, and how many texts were cut.

    Args:
        tokenizer: the model's tokenizer.
        max_tokens: longer texts are cut.
        place: where the texts come from, for messages.
        texts: at least one; that of an item to classify by its image alone is empty.
        progress: called with texts tokenised and in total.

    Raises:
        UserError: the tokenizer makes no token of a text that is not empty.

    """
    first_seen: dict[ImageKey, int] = {}
    groups = np.fromiter((first_seen.setdefault(text.images, len(first_seen)) for text in texts), dtype=np.int64)
    image_arrays = _image_arrays(first_seen)
    del first_seen
    order = np.argsort(groups, kind="stable")  # the file's order within a group
    tokens, lengths, cut = _encode(tokenizer, max_tokens, texts, order, progress)
    if empty := [place for place in np.flatnonzero(lengths == 0) if texts[order[place]].text]:
        first = texts[order[empty[0]]]
        raise UserError(
            f"{place}: the tokenizer makes nothing of {len(empty):,} of the texts, such as text "
            f"{first.text_id!r} of {name_images(first.image_ids)} ({short(first.text)}); remove them"
        )

    def labels(place: int, dtype: type) -> np.ndarray:
        return np.fromiter((label[place] for index in order for label in texts[index].labels), dtype=dtype)

    arrays = {
        "token_ids": tokens,
        "offsets": _offsets(lengths),
        "text_ids": _text_ids([texts[index].text_id for index in order]),
        "groups": _offsets(np.bincount(groups)),
        **image_arrays,
        "label_offsets": _offsets([len(texts[index].labels) for index in order]),
        "label_ids": labels(0, np.int32),
        "label_scores": labels(1, np.float32),
    }
    return arrays, cut


def _text_ids(ids: Sequence[Id]) -> np.ndarray:
    if all(isinstance(one, int) and -(2**63) <= one < 2**63 for one in ids):
        return np.array(ids, dtype=np.int64)
    return np.array([str(one).encode()[:ID_BYTES] for one in ids])


def _image_arrays(groups: Collection[ImageKey]) -> dict[str, np.ndarray]:
    """Arrays of the images of groups; `TextStore.GROUP_ARRAYS` only if one has several images, or times."""
    images: dict[str, int] = {}
    for image_ids, _ in groups:
        for image_id in image_ids:
            images.setdefault(image_id, len(images))
    encoded = [encode_id(image_id) for image_id in images]
    arrays = {
        "image_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "image_offsets": _offsets([len(image_id) for image_id in encoded]),
    }
    if all(len(image_ids) == 1 and not times for image_ids, times in groups):
        return arrays
    seconds = (time for image_ids, times in groups for time in times or (0.0,) * len(image_ids))
    return arrays | {
        "group_offsets": _offsets([len(image_ids) for image_ids, _ in groups]),
        "group_images": np.fromiter((images[image_id] for image_ids, _ in groups for image_id in image_ids), np.int64),
        "group_times": np.fromiter(seconds, dtype=np.float32),
    }


def _encode(
    tokenizer: Tokenizer,
    max_tokens: int,
    texts: Sequence["LabelledText"],
    order: np.ndarray,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokenise in the given order, piece by piece: all token ids end to end, lengths (T,) and the number of cuts."""
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
