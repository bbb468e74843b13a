"""Image-text matching with a trained model: for prefixes or a region store."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.prefixes import Prefix
from dimvl.data.targets import MatchTargets, TargetSpec
from dimvl.regions.store import RegionStore
from dimvl.tasks.inference import finite, predict_texts
from dimvl.tasks.task import Ability, Forward, by_probability
from dimvl.tasks.texts import text_batch
from dimvl.trained_model import TrainedModel


@torch.inference_mode()
def match_logits(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the matching head's logit for each prefix and its text: (M,), on the model's device.

    If the model's prefixes do not depend on the text, consecutive equal prefixes (the same object) are computed once.
    """
    batch = text_batch(trained, prefixes, words, {"matching": TargetSpec(MatchTargets)})
    assert trained.model.match_head is not None
    rows = trained.model(batch)[batch.targets["matching"].rows]
    return finite(trained.model.match_head(rows).float())


def match_probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the probability that each prefix and its text belong together, as `match_logits`: (M,)."""
    return match_logits(trained, prefixes, words).sigmoid().cpu()


MATCH_LOGIT = Forward(
    name="match",
    head="match_head",
    outputs=lambda head, rows: (head(rows.judged),),
    meanings={
        "logits": "(1,) logit; its sigmoid is the probability that the text belongs to the image. To choose among "
        "texts, take the softmax over their logits"
    },
    eager=lambda trained, prefix, words: (match_logits(trained, [prefix], [words]),),
)
MATCH = Ability(
    verb="match",
    available=lambda processor: processor.matches,
    apply=match_probabilities,
    result=lambda trained, probability, **options: float(probability),
    evidence=by_probability(match_probabilities),
    takes_text=True,
    example='predictor.match("image.png", "a red circle")',
    forward=MATCH_LOGIT,
)


def match_pairs(
    trained: TrainedModel, store: RegionStore, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
) -> np.ndarray:
    """Return the probability (M,) that image and text belong together, for each pair (image id, text).

    Raises:
        UserError: no pair, an empty text, an image that the store lacks, or a store of another extractor.

    """
    MATCH.check(trained)
    words = trained.tokenise([text for _, text in pairs])
    found = predict_texts(
        trained,
        store,
        [((image_id,), ()) for image_id, _ in pairs],
        words,
        lambda prefixes, own: match_probabilities(trained, prefixes, own).tolist(),
        progress,
    )
    return np.array(found, dtype=np.float32)
