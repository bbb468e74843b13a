"""Calls of a Predictor whose types `make lint` checks; `test_predictor.py` runs them."""

import io
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image

from dimvl import Predictor
from dimvl.data.answers import Answer, Chosen
from dimvl.explanation import Grounding
from dimvl.regions.records import Regions


def captions_of_one_image_of_any_kind(predictor: Predictor, file: Path) -> list[str]:
    """Caption one image from each source that can give it."""
    image, pixels = Image.open(file), np.asarray(Image.open(file).convert("RGB"))
    with file.open("rb") as opened:
        captions = [predictor.caption(opened)]
    captions.append(predictor.caption(file))
    captions.append(predictor.caption(str(file)))
    captions.append(predictor.caption(file.read_bytes()))
    captions.append(predictor.caption(bytearray(file.read_bytes())))
    captions.append(predictor.caption(io.BytesIO(file.read_bytes())))
    captions.append(predictor.caption(pixels))
    captions.append(predictor.caption(torch.from_numpy(pixels.copy()).permute(2, 0, 1)))
    captions.append(predictor.caption(predictor.regions(image)))
    captions.append(predictor.caption((image,)))
    captions.append(assert_type(predictor.caption(image, 3, length_penalty=1.0), str))
    return captions


def captions_of_every_sequence(predictor: Predictor, files: list[Path]) -> list[list[str]]:
    """Caption the same images from each type of batch."""
    images: list[Image.Image] = [Image.open(file) for file in files]
    some: Sequence[Image.Image | Path] = [*images[:1], *files[1:]]
    regions: list[Regions] = assert_type(predictor.regions(images), list[Regions])
    groups: list[tuple[Image.Image, ...]] = [(image,) for image in images]
    return [
        assert_type(predictor.caption(images), list[str]),
        predictor.caption(some),
        predictor.caption(regions),
        predictor.caption(groups),
        predictor.caption(deque(images)),
        predictor.caption([str(file) for file in files], 3),
        predictor.caption([np.asarray(image.convert("RGB")) for image in images]),
        predictor.caption([file.read_bytes() for file in files]),
    ]


def regions_of_phrases(predictor: Predictor, image: Image.Image, phrase: str) -> list[Grounding]:
    """Find one phrase, and several."""
    one = assert_type(predictor.ground(image, phrase, top=3), Grounding)
    return [one, *assert_type(predictor.ground(image, [phrase, phrase]), list[Grounding])]


def results_without_torn_images(
    predictor: Predictor, images: list[Image.Image], text: str, skipped: list[tuple[int, str]]
) -> tuple[list[Regions | None], list[str | None], list[Answer | None], list[float | None]]:
    """Return what each method gives for a list of images, None for those in `skipped`."""
    answers: Answer | list[Answer] = predictor.answer(images[0], text)
    answers = predictor.answer(images[:1], [text])
    answers = predictor.answer(images[0], (text, text))
    assert_type(answers, list[Answer])
    assert_type(predictor.choose(images[0], text, [text, "none"]), Chosen)
    assert_type(predictor.choose(images[:1], [text], [[text, "none"]]), list[Chosen])
    assert_type(predictor.match(images[0], text), float)
    assert_type(predictor.match(images[:1], text), list[float])
    return (
        predictor.regions(images, skipped),
        predictor.caption(images, skipped=skipped),
        predictor.answer(images, text, skipped=skipped),
        predictor.match(images, text, skipped=skipped),
    )
