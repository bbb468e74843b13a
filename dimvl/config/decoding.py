"""How captions are decoded: the settings of an evaluation, of a prediction and of the demo."""

from pydantic import Field

from dimvl.config.sections import Section


class DecodingOptions(Section):
    """Options of beam search."""

    beams: int = Field(3, ge=1, le=100, description="K, hypotheses kept at each step; 1 is greedy")
    max_tokens: int = Field(
        40, ge=1, le=10_000, description="longest text with its final [SEP], the only token allowed in the last place"
    )
    length_penalty: float = Field(
        1.0, ge=-10, le=10, description="texts are compared by log-probability / length ** penalty; [SEP] is counted"
    )
    block_ngrams: int = Field(
        0, ge=0, le=100, description="no n-gram of this many tokens occurs twice in a text; 0 allows all"
    )
