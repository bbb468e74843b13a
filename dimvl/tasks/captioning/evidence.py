"""What a caption rests on: its log-probability, and that of each of its words, without each region.

Letters: P prefixes, T tokens of the caption with its final [SEP], W words.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dimvl.config import DecodingOptions
from dimvl.data.examples import Example, Text
from dimvl.data.prefixes import Prefix
from dimvl.data.targets import TargetSpec, WordTargets
from dimvl.decoding import caption_prefixes
from dimvl.objectives import word_loss
from dimvl.tasks.base import causal_text
from dimvl.tasks.inference import finite
from dimvl.tasks.task import Evidence
from dimvl.trained_model import TrainedModel


@torch.inference_mode()
def caption_evidence(trained: TrainedModel, prefixes: Sequence[Prefix], options: DecodingOptions) -> Evidence:
    """Caption the first of P prefixes, and return the log-probabilities of this caption for all of them."""
    processor, tokenizer = trained.processor, trained.processor.tokenizer
    first = [Example(source="image", objective="", prefix=prefixes[0], texts=[], seq2seq=True)]
    [[best]] = caption_prefixes(trained.model, processor, trained.batch(first, {}), options, wanted=1)
    values = log_probabilities(trained, prefixes, np.array(best.token_ids, dtype=np.int64))
    starts = [place for place, token in enumerate(best.token_ids) if not place or not tokenizer.continues_word(token)]
    pieces = np.diff([*starts, len(best.token_ids)]).tolist()
    words = [
        tokenizer.decode(list(best.token_ids[start : start + count]))
        for start, count in zip(starts, pieces, strict=True)
    ]
    parts = values[:, : len(best.token_ids)].split(pieces, dim=1)
    of_words = torch.stack([part.sum(dim=1) for part in parts], dim=1) if words else None
    return Evidence(tokenizer.decode(list(best.token_ids)), values.sum(dim=1), True, words, of_words)


@torch.inference_mode()
def log_probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], words: np.ndarray) -> Tensor:
    """Return the log-probability of each token of a text after a prefix and the tokens before it, the final [SEP] too.

    Args:
        trained: a model that captions.
        prefixes: P prefixes.
        words: (T - 1,) token ids.

    Returns:
        (P, T) float32 on the CPU.

    """
    tokenizer = trained.processor.tokenizer
    if trained.processor.variant == "causal":
        texts = [causal_text(words, tokenizer)]
    else:  # each token is predicted from a [MASK] in its place
        wanted = [*words.tolist(), tokenizer.sep]
        texts = [
            Text(
                token_ids=np.array([*wanted[:place], tokenizer.mask]),
                places=np.array([place]),
                labels=np.array([token]),
            )
            for place, token in enumerate(wanted)
        ]
    examples = [
        Example(source="image", objective="words", prefix=prefix, texts=texts, seq2seq=True) for prefix in prefixes
    ]
    batch = trained.batch(examples, {"words": TargetSpec(WordTargets)})
    targets = batch.targets["words"]
    assert isinstance(targets, WordTargets) and trained.model.word_head is not None
    logits = trained.model.word_head(trained.model(batch)[targets.rows])
    return -finite(word_loss(logits, targets.labels, reduction="none")).cpu().view(len(prefixes), len(words) + 1)
