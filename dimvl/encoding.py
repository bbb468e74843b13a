"""The vectors that a trained model has of images and of their regions, for any model and task.

Unlike `embed_image`, which gives unit vectors of a space shared with texts and needs a model that was trained to align,
these are the rows of the encoder's last layer.

Letters: D width, R regions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dimvl.data.examples import Example
from dimvl.data.prefixes import Prefix
from dimvl.tasks.inference import finite
from dimvl.trained_model import TrainedModel


class Encoding(NamedTuple):
    """Vectors of an image, or of a tuple of images.

    Attributes:
        image: (D,) float32, the row of [CLS], which has seen all regions and their names.
        regions: (R, D) float32, the row of each region, which has seen the others.
        boxes: (R, 4) float32 corners x1, y1, x2, y2 of these regions, as fractions of their image.
        image_index: (R,) the image of each region in a tuple of several, from 0.

    """

    image: np.ndarray
    regions: np.ndarray
    boxes: np.ndarray
    image_index: np.ndarray


@torch.inference_mode()
def encode(trained: TrainedModel, prefixes: Sequence[Prefix]) -> list[Encoding]:
    """Encode prefixes without a text."""
    examples = [Example(source="image", objective="", prefix=one, texts=[], seq2seq=True) for one in prefixes]
    batch = trained.batch(examples, {})
    rows = finite(trained.model(batch).float()).cpu().numpy()
    starts = zip(batch.layout.region_starts.tolist(), batch.layout.context_starts.tolist(), prefixes, strict=True)
    return [
        Encoding(rows[context].copy(), rows[start : start + len(one.features)].copy(), one.boxes, one.image_index)
        for start, context, one in starts
    ]
