"""Zero-shot classification: the name of a class is put into sentences, and images are compared with their mean.

As in CLIP (Radford et al., ICML 2021): the embedding of a class is the mean over templates of the unit vectors of its
sentences, made a unit vector again; probabilities are the softmax over classes of cosine / temperature. Different on
purpose: templates may fit the article to the name, `a(n) {}`.

Letters: M images, C classes, E dimensions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.data.prefixes import Prefix
from dimvl.errors import UserError
from dimvl.showing import short
from dimvl.tasks.retrieval.labels import TEMPLATES, check_labels, filled
from dimvl.tasks.retrieval.prediction import Embeddings, embed_all_texts, embed_images, similarity
from dimvl.tasks.task import Ability, by_probability
from dimvl.trained_model import TrainedModel


class Classes(NamedTuple):
    """Classes as a model sees them.

    Attributes:
        names: of the C classes.
        pooled: (C, E) float32 unit vectors.

    """

    names: Sequence[str]
    pooled: Tensor


def embed_classes(trained: TrainedModel, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Classes:
    """Embed classes, given by their names.

    Raises:
        UserError: the model does not align images and texts; or as `check_labels`, a name of which the model knows no
            word, or two names of the same tokens.

    """
    BY_LABELS.check(trained)
    names, tokenizer = check_labels(labels), trained.processor.tokenizer
    seen: dict[bytes, str] = {}
    for name, tokens in zip(names, trained.tokenise(names), strict=True):
        if (tokens == tokenizer.unknown).all():
            raise UserError(f"label {short(name)} has no word that the model knows; write it in words of its captions")
        if (other := seen.setdefault(tokens.tobytes(), name)) != name:
            raise UserError(f"labels {short(other)} and {short(name)} are the same tokens to the model; remove one")
    texts = embed_all_texts(trained, [filled(template, name) for name in names for template in templates])
    means = texts.pooled.unflatten(0, (len(names), len(templates))).mean(dim=1)
    return Classes(names, F.normalize(means, dim=1))


def _settle(
    trained: TrainedModel, labels: Sequence[str] | Classes, templates: Sequence[str] = TEMPLATES, **options: Any
) -> dict[str, Any]:
    classes = labels if isinstance(labels, Classes) else embed_classes(trained, labels, templates)
    return {**options, "classes": classes}


def class_probabilities(
    trained: TrainedModel, prefixes: Sequence[Prefix], words: None, classes: Classes, **options: Any
) -> Tensor:
    """Return the probability of each class for each prefix: (M, C), on the CPU."""
    texts = Embeddings(classes.pooled, classes.pooled[:0], np.zeros(len(classes.names), dtype=np.int64))
    with torch.inference_mode():
        return similarity(trained, embed_images(trained, prefixes), texts).softmax(dim=1)


def best_labels(
    trained: TrainedModel, probabilities: Tensor, classes: Classes, top: int = 5
) -> list[tuple[str, float]]:
    """Return the best labels of an image with their probabilities, from those of all: (C,)."""
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    values, places = probabilities.sort(descending=True, stable=True)
    ranked = zip(places[:top].tolist(), values[:top].tolist(), strict=True)
    return [(classes.names[place], value) for place, value in ranked]


BY_LABELS = Ability(
    verb="classify by labels",
    available=lambda processor: processor.aligns,
    apply=class_probabilities,
    result=best_labels,
    evidence=by_probability(class_probabilities),
    takes_text=False,
    settle=_settle,
    example='predictor.classify("image.png", ["circle", "star"])',
)
