"""How texts are decoded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodingOptions:
    """Options of beam search."""

    beams: int = 3  # K; 1 is greedy
    max_tokens: int = 40  # longest text including the final [SEP], the only token allowed in the last place
    length_penalty: float = 1.0  # hypotheses are compared by log-probability / length ** penalty; [SEP] is counted
    block_ngrams: int = 0  # no n-gram of this many tokens occurs twice in a text; 0 allows all
