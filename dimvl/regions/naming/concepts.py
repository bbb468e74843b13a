"""The learned concept detector: region features to probabilities of words, trained from captions without boxes.

The network and its folder; `dimvl.concepts` trains it. A word's probability in a region is the sigmoid of one linear
function of its standardised feature; an image's is pooled over its regions, by default by noisy-OR (Fang et al., From
captions to visual concepts and back, CVPR 2015, equation 1).

Letters: R regions of an image, N regions of all images, B images, F feature width, W words.
"""

from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.files import Sha256, Strict, check_values, read_sealed, write_sealed
from dimvl.files.weights import load_weights, save_weights
from dimvl.regions.detectors.weights import fingerprint
from dimvl.regions.naming.base import NAMES_KEPT, SETTINGS, Namer
from dimvl.regions.records import SIZES, Extractor

WEIGHTS = "concepts.safetensors"
REMEDY = "copy the folder again, or train the concepts again with `dimvl concepts`"
Pooling = Literal["noisy_or"]
PartOfSpeech = Literal["noun", "verb", "adjective"]


class Source(Strict):
    """The extractor of the features, as far as it changes the feature of a given box."""

    name: str
    looks: str
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
        features: the extractor of the features that it was trained on.
        fingerprint: of weights and words.

    """

    kind: Literal["concepts"] = "concepts"
    version: Literal[1] = 1
    words: tuple[str, ...] = Field(min_length=1, max_length=2**15 - 1)
    parts_of_speech: tuple[PartOfSpeech, ...]
    pooling: Pooling
    features: Source
    fingerprint: Sha256


class ConceptNetwork(nn.Module):
    """One logit per region and word, a linear function of the standardised feature."""

    mean: Tensor
    std: Tensor

    def __init__(self, feature_width: int, words: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_width))
        self.register_buffer("std", torch.ones(feature_width))
        self.word = nn.Linear(feature_width, words)

    def forward(self, features: Tensor) -> Tensor:
        """Map region features (N, F) to logits (N, W)."""
        return self.word((features - self.mean) / self.std)


def noisy_or(logits: Tensor, num_regions: list[int]) -> Tensor:
    """Log-probability that no region shows a word.

    A region shows word w with probability p = sigmoid(logit), independently of the others, so none of an image does
    with the product of 1 - p; log(1 - p) is -softplus(logit), exact where p rounds to 1.

    Args:
        logits: (N, W) of the regions of all images, end to end.
        num_regions: of each of the B images.

    Returns:
        (B, W), at most 0.

    """
    none = -F.softplus(logits)
    images = torch.repeat_interleave(torch.tensor(num_regions, device=logits.device))
    return none.new_zeros(len(num_regions), logits.shape[1]).index_add(0, images, none)


class ConceptNamer(Namer):
    """Trained concepts, ready for use: see `Namer`.

    Args:
        network: its weights.
        words: lemmas, by id.
        parts_of_speech: of each word.
        pooling: with which it was trained.
        features: the extractor that it was trained on.

    """

    def __init__(
        self,
        network: ConceptNetwork,
        words: tuple[str, ...],
        parts_of_speech: tuple[PartOfSpeech, ...],
        pooling: Pooling,
        features: Source,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.names = words
        self.parts_of_speech = parts_of_speech
        self.pooling = pooling
        self.features = features
        self.feature_width = features.feature_width
        self.fingerprint = fingerprint(network.state_dict(), *words)

    @torch.inference_mode()
    def name(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Namer.name`. Features are rounded to float16 first: so those of a store give the same names."""
        scores, ids = self.network(features.half().float()).sigmoid().topk(min(NAMES_KEPT, len(self.names)), dim=1)
        return ids, scores

    def check_features(self, extractor: Extractor) -> None:
        """See `Namer.check_features`."""
        if difference := self.features.difference(Source.of(extractor)):
            raise UserError(
                f"the concepts were trained on features of {self.features.name} but these are of {extractor.name}: "
                f"{difference}; train concepts on a store of this extractor with `dimvl concepts`, or give that one"
            )

    def to(self, device: torch.device | str) -> Self:
        """See `Namer.to`."""
        self.network.to(device)
        return self

    def save(self, folder: Path) -> None:
        """See `Namer.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.network.state_dict())
        settings = Settings(
            words=self.names,
            parts_of_speech=self.parts_of_speech,
            pooling=self.pooling,
            features=self.features,
            fingerprint=self.fingerprint,
        )
        write_sealed(folder / SETTINGS, settings.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "ConceptNamer":
        """See `Namer.load`."""
        settings = check_values(read_sealed(folder / SETTINGS, REMEDY), Settings, folder / SETTINGS, REMEDY)
        weights = load_weights(folder / WEIGHTS, REMEDY)
        if fingerprint(weights, *settings.words) != settings.fingerprint:
            raise UserError(f"{folder / WEIGHTS} does not belong to {SETTINGS}, or is damaged; {REMEDY}")
        network = ConceptNetwork(settings.features.feature_width, len(settings.words))
        network.load_state_dict(weights)
        return cls(network, settings.words, settings.parts_of_speech, settings.pooling, settings.features)
