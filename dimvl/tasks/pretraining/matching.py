"""Image-text matching with a trained model: for prefixes or a region store."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.examples import Example
from dimvl.data.prefixes import Prefix
from dimvl.data.targets import Matches, MatchTargets, TargetSpec
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import plain_text
from dimvl.tasks.inference import finite, store_batches
from dimvl.tasks.task import Ability, by_probability
from dimvl.trained_model import TrainedModel


@torch.inference_mode()
def match_logits(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the matching head's logit for each prefix and its text: (M,), on the model's device.

    If the model's prefixes do not depend on the text, consecutive equal prefixes (the same object) are computed once.
    """
    tokenizer = trained.processor.tokenizer
    examples = [
        Example(
            source="pair",
            objective="matching",
            prefix=prefix,
            texts=[plain_text(text, tokenizer) for text in texts],
            seq2seq=trained.processor.shared_prefix,
            target=Matches([0.0] * len(texts)),
        )
        for prefix, texts in trained.by_prefix(prefixes, words)
    ]
    batch = trained.batch(examples, {"matching": TargetSpec(MatchTargets)})
    assert trained.model.match_head is not None
    rows = trained.model(batch)[batch.targets["matching"].rows]
    return finite(trained.model.match_head(rows).float())


def match_probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the probability that each prefix and its text belong together, as `match_logits`: (M,)."""
    return match_logits(trained, prefixes, words).sigmoid().cpu()


MATCH = Ability(
    verb="match",
    available=lambda processor: processor.matches,
    apply=match_probabilities,
    result=lambda trained, probability, **options: float(probability),
    evidence=by_probability(match_probabilities),
    takes_text=True,
    example='predictor.match("image.png", "a red circle")',
)


def match_pairs(
    trained: TrainedModel, store: RegionStore, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
) -> np.ndarray:
    """Return the probability (M,) that image and text belong together, for each pair (image id, text).

    Raises:
        UserError: no pair, an empty text, an image that the store lacks, or a store of another extractor.

    """
    MATCH.check(trained)
    result, done = np.zeros(len(pairs), dtype=np.float32), 0
    words = trained.tokenise([text for _, text in pairs])
    images, rows = [((image_id,), ()) for image_id, _ in pairs], [len(text) + 1 for text in words]
    for chosen, prefixes in store_batches(trained, store, images, rows):
        result[chosen] = match_probabilities(trained, prefixes, [words[place] for place in chosen]).numpy()
        done += len(chosen)
        if progress is not None:
            progress(done, len(pairs))
    return result
