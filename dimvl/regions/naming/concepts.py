"""The learned concept detector: region features to probabilities of words, trained from captions without boxes.

The network and its folder; `dimvl.concepts` trains it. A word's probability in a region is the sigmoid of a logit, of
one hidden layer over its standardised feature; an image's is pooled over its regions. Fang et al. (From captions to
visual concepts and back, CVPR 2015, equation 1) pool by noisy-OR and train a convolutional network end to end; here the
features are frozen. docs/concepts.md has what was measured.

Letters: R regions of an image, N regions of all images, B images, F feature width, W words.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.files import check_values, read_sealed, write_sealed
from dimvl.files.weights import load_weights, save_weights
from dimvl.regions.detectors.settings import loaded
from dimvl.regions.detectors.weights import fingerprint
from dimvl.regions.naming.base import NAMES_KEPT, SETTINGS, Namer
from dimvl.regions.naming.settings import PartOfSpeech, Pooling, Settings, Source
from dimvl.regions.records import Extractor

WEIGHTS = "concepts.safetensors"
REMEDY = "copy the folder again, or train the concepts again with `dimvl concepts`"
LEAST = 1e-20
"""Of the probability that a word is in an image: its logarithm stays finite."""


class ConceptNetwork(nn.Module):
    """One logit per region and word, and how the regions of an image are pooled.

    Args:
        feature_width: F.
        words: W.
        pooling: `noisy_or`: some region shows the word; `mean`: the mean of the logits, as in class activation maps
            (Zhou et al., CVPR 2016); `attention`: their mean weighted by one learned attention for all words; `max`:
            the largest; `log_mean_exp`: a soft maximum (Pinheiro and Collobert, CVPR 2015, with r = 1).
        hidden: width of the hidden layer; 0 for none.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, feature_width: int, words: int, pooling: Pooling, hidden: int = 0) -> None:
        super().__init__()
        self.pooling = pooling
        self.hidden = nn.Linear(feature_width, hidden) if hidden else None
        self.register_buffer("mean", torch.zeros(feature_width))
        self.register_buffer("std", torch.ones(feature_width))
        width = hidden or feature_width
        self.word = nn.Linear(width, words)
        nn.init.normal_(self.word.weight, std=0.02 if hidden else 0.01)
        self.attention = nn.Linear(width, 1, bias=False) if pooling == "attention" else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)

    def start_at(self, rates: Tensor, regions: float) -> None:
        """Set the biases so that the pooled probabilities are nearly `rates` (W,) in images of so many regions."""
        rates = rates.double().clamp(1e-6, 1 - 1e-6)
        if self.pooling == "noisy_or":
            rates = -torch.expm1(torch.log1p(-rates) / max(regions, 1))
        with torch.no_grad():
            self.word.bias.copy_(torch.logit(rates))

    def standardised(self, features: Tensor) -> Tensor:
        """Return features (N, F) with mean 0 and variance 1 over the training store."""
        return (features - self.mean) / self.std

    def forward(self, features: Tensor) -> Tensor:
        """Map region features (N, F) to logits (N, W)."""
        logits: Tensor = self.word(self._top(self.standardised(features)))
        return logits

    def _top(self, standardised: Tensor) -> Tensor:
        return standardised if self.hidden is None else F.gelu(self.hidden(standardised))

    def pooled(self, standardised: Tensor, num_regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities that images show words, and that they do not.

        Args:
            standardised: (N, F) of the regions of all images, end to end.
            num_regions: (B,) of each image, at least 1.

        Returns:
            Two (B, W).

        """
        top = self._top(standardised)
        logits: Tensor = self.word(top)
        if self.pooling == "noisy_or":
            absent = noisy_or(logits, num_regions)
            return torch.log(-torch.expm1(absent.clamp(max=-LEAST))), absent
        parts = logits.split(num_regions.tolist())
        if self.attention is not None:
            weights = self.attention(top).split(num_regions.tolist())
            rows = [(weight.softmax(0) * own).sum(0) for weight, own in zip(weights, parts, strict=True)]
        elif self.pooling == "max":
            rows = [own.amax(0) for own in parts]
        elif self.pooling == "mean":
            rows = [own.mean(0) for own in parts]
        else:
            rows = [own.logsumexp(0) - math.log(len(own)) for own in parts]
        pooled = torch.stack(rows)
        return F.logsigmoid(pooled), F.logsigmoid(-pooled)


def noisy_or(logits: Tensor, num_regions: Tensor) -> Tensor:
    """Log-probability that no region shows a word, if each does with p = sigmoid(logit), independently.

    It is the sum of log(1 - p) = -softplus(logit), exact also where p rounds to 1.

    Args:
        logits: (N, W) of the regions of all images, end to end.
        num_regions: (B,) of each image.

    Returns:
        (B, W), at most 0.

    """
    images = torch.repeat_interleave(num_regions)
    return logits.new_zeros(len(num_regions), logits.shape[1]).index_add(0, images, -F.softplus(logits))


class ConceptNamer(Namer):
    """Trained concepts, ready for use: see `Namer`.

    Args:
        network: its weights.
        words: lemmas, by id.
        parts_of_speech: of each word.
        features: the extractor that it was trained on.

    """

    def __init__(
        self,
        network: ConceptNetwork,
        words: tuple[str, ...],
        parts_of_speech: tuple[PartOfSpeech, ...],
        features: Source,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.names = words
        self.parts_of_speech = parts_of_speech
        self.features = features
        self.fingerprint = fingerprint(network.state_dict(), network.pooling, *words)

    @torch.inference_mode()
    def name(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Namer.name`. Features are rounded to float16 first, so that those of a store give the same names."""
        scores, ids = self.network(features.half().float()).sigmoid().topk(min(NAMES_KEPT, len(self.names)), dim=1)
        return ids, scores

    def check_features(self, extractor: Extractor) -> None:
        """See `Namer.check_features`."""
        if difference := self.features.difference(Source.of(extractor)):
            raise UserError(
                f"the concepts were trained on regions of another model ({self.features.name}) than these "
                f"({extractor.name}): {difference}; train concepts on a store of this extractor with `dimvl "
                "concepts`, or give that one"
            )

    def save(self, folder: Path) -> None:
        """See `Namer.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.network.state_dict())
        settings = Settings(
            words=self.names,
            parts_of_speech=self.parts_of_speech,
            pooling=self.network.pooling,
            hidden=0 if self.network.hidden is None else self.network.hidden.out_features,
            features=self.features,
            fingerprint=self.fingerprint,
        )
        write_sealed(folder / SETTINGS, settings.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "ConceptNamer":
        """See `Namer.load`."""
        settings = check_values(read_sealed(folder / SETTINGS, REMEDY), Settings, folder / SETTINGS, REMEDY)
        damaged = f"{folder / WEIGHTS} is damaged, or does not belong to {SETTINGS}; {REMEDY}"
        shape = (settings.features.feature_width, len(settings.words), settings.pooling, settings.hidden)
        network = loaded(lambda: ConceptNetwork(*shape), load_weights(folder / WEIGHTS, REMEDY), damaged)
        namer = cls(network, settings.words, settings.parts_of_speech, settings.features)
        if namer.fingerprint != settings.fingerprint:
            raise UserError(damaged)
        return namer
