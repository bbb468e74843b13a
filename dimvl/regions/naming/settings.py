"""The form of `called.json` of learned concepts; imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dimvl.files import Sha256, Strict
from dimvl.regions.records import SIZES, Extractor

Pooling = Literal["noisy_or", "attention", "max", "mean", "log_mean_exp"]
PartOfSpeech = Literal["noun", "verb", "adjective"]


class Source(Strict):
    """The extractor of the features, as far as it changes the feature of a given box."""

    name: str
    looks: Sha256
    feature_width: int = Field(ge=1, lt=2**20)
    sizes: dict[str, int]

    @classmethod
    def of(cls, extractor: Extractor) -> "Source":
        """Describe an extractor."""
        names = ("features_side",) if "looks" in extractor.parts else SIZES
        sizes = {name: int(extractor.parameters[name]) for name in names if name in extractor.parameters}
        return cls(name=extractor.name, looks=extractor.looks, feature_width=extractor.feature_width, sizes=sizes)

    def difference(self, other: "Source") -> str | None:
        """Say what the features of another extractor have that these have not; None if they are comparable."""
        if self.looks != other.looks:
            return f"weights {other.looks[:12]}, not {self.looks[:12]}"
        if self.feature_width != other.feature_width:
            return f"a width of {other.feature_width}, not {self.feature_width}"
        differ = [name for name in self.sizes if other.sizes.get(name, self.sizes[name]) != self.sizes[name]]
        return f"{differ[0]} {other.sizes[differ[0]]}, not {self.sizes[differ[0]]}" if differ else None


class Settings(Strict):
    """The content of `called.json`.

    Attributes:
        words: lemmas, the most frequent first.
        parts_of_speech: of each word.
        pooling: how probabilities of regions became those of images in training.
        hidden: width of the hidden layer; 0 for none.
        features: the extractor of the features that it was trained on.
        fingerprint: of weights and words.

    """

    kind: Literal["concepts"] = "concepts"
    version: Literal[1] = 1
    words: tuple[str, ...] = Field(min_length=1, max_length=2**15 - 1)
    parts_of_speech: tuple[PartOfSpeech, ...]
    pooling: Pooling
    hidden: int = Field(ge=0, lt=2**16)
    features: Source
    fingerprint: Sha256

    @model_validator(mode="after")
    def _each_word_once(self) -> Self:
        if len(self.parts_of_speech) != len(self.words) or len(set(self.words)) != len(self.words):
            raise ValueError("words and their parts of speech do not fit together")
        return self
