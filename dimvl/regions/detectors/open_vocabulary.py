"""Open-vocabulary detectors of transformers: they find what a list of names says.

OWL-ViT (Minderer et al., ECCV 2022) and OWLv2 (Minderer et al., NeurIPS 2023) predict a box for each patch of a vision
Transformer and compare the patch with a text tower's embedding of each name. Grounding DINO (Liu et al., ECCV 2024)
reads the names as one text, fuses it with the image, and compares each query's decoder state with each token.

A region's class is the name that fits its candidate best; there are no attributes. The names and the prompt are part of
the fingerprint, and a saved detector has them. A candidate finds its own box, so boxes from elsewhere cannot be
described.

Letters: B images, Q candidates, K names, T tokens, F feature width.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.files.weights import full_disk
from dimvl.regions.detectors.base import KIND, SETTINGS
from dimvl.regions.detectors.selection import Selection, select
from dimvl.regions.detectors.settings import OpenVocabularySettings, library_settings
from dimvl.regions.detectors.transformers_models import (
    PIXELS,
    Candidates,
    QueryDetector,
    corners_of,
    family_of,
    fetched,
    opening,
    text_embeddings,
    whole_model,
)
from dimvl.regions.detectors.weights import fingerprint
from dimvl.showing import counted, short, some

log = logging.getLogger(__name__)

GREY = 0.5  # of the padding, before normalisation, as OWLv2 was trained (google-research/scenic, projects/owl_vit)
SEPARATORS = str.maketrans({".": " ", "?": " "})
"""Grounding DINO separates names by a full stop or a question mark, so a name cannot contain one."""


class OpenVocabularyDetector(QueryDetector):
    """An open-vocabulary detector with its vocabulary, ready for use.

    Args:
        name: readable name.
        network: the model, as `AutoModelForZeroShotObjectDetection` loads it.
        processor: its image processor.
        tokenizer: its tokenizer.
        vocabulary: the names to look for.
        selection: which candidates become regions.
        feature_width: F.

    """

    files = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    prompt: ClassVar[str]  # what the text tower reads for a name

    def __init__(
        self,
        name: str,
        network: Any,
        processor: Any,
        tokenizer: Any,
        vocabulary: Sequence[str],
        selection: Selection,
        feature_width: int,
    ) -> None:
        self.tokenizer = tokenizer
        super().__init__(name, network, processor, selection, feature_width, vocabulary)

    @staticmethod
    def create(place: str | Path, vocabulary: Sequence[str] | None) -> "OpenVocabularyDetector":
        """Open a folder of `save_pretrained`, or a name on the hub, `owner/name[@revision]`.

        Args:
            place: the folder or the name.
            vocabulary: the names to look for.

        Raises:
            UserError: there is no vocabulary, or a name in it cannot be looked for; transformers is not installed; or
                the detector does not exist or has no safetensors weights.

        """
        return _opened(place, place.name if isinstance(place, Path) else place, vocabulary)

    @classmethod
    def load(cls, folder: Path) -> "OpenVocabularyDetector":
        """See `RegionDetector.load`."""
        settings = library_settings(folder, OpenVocabularySettings)
        return _opened(folder, settings.name, settings.vocabulary).configure(settings.options)

    def save(self, folder: Path) -> None:
        """Write settings with the vocabulary, and what `save_pretrained` of transformers writes."""
        with full_disk():
            self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings = {KIND: "open_vocabulary", "name": self.name, "vocabulary": list(self.classes), **self.parameters}
        write_json(folder / SETTINGS, settings)

    @cached_property
    def _fingerprint(self) -> str:
        settings = [f"{name}={getattr(self.processor, name, None)}" for name in PIXELS]
        return fingerprint(self.network.state_dict(), *settings, self.prompt, *map(repr, self.classes))


class OwlDetector(OpenVocabularyDetector):
    """OWL-ViT or OWLv2.

    The feature of a region is its patch in `image_embeds`: the last state of the vision tower times that of its class
    token, normalised. Both heads read it, so it has what decides the box as well as the name; the class head's
    projection of it (`class_embeds`) has only what tells names apart. The feature of the whole image is the mean of its
    patches.
    """

    prompt = "a photo of a {}"

    def __init__(self, name: str, network: Any, processor: Any, tokenizer: Any, vocabulary: Sequence[str]) -> None:
        # Neighbouring patches find the same object; the threshold is the library's.
        selection = Selection(score_threshold=0.1)
        width = network.config.vision_config.hidden_size
        self.square = network.config.model_type == "owlv2"  # pads images to a square; OWL-ViT stretches them
        super().__init__(name, network, processor, tokenizer, vocabulary, selection, width)

    @cached_property
    def queries(self) -> Tensor:
        """Embeddings (K, width of the text space) of the names, on the CPU."""
        texts = [self.prompt.format(name) for name in self.classes]
        longest = self.network.config.text_config.max_position_embeddings
        lengths = [len(tokens) for tokens in self.tokenizer(texts)["input_ids"]]
        if cut := [name for name, length in zip(self.classes, lengths, strict=True) if length > longest]:
            log.warning(
                "%s are longer than the %d tokens that %s reads, so their ends are ignored: %s",
                *(counted(len(cut), "name"), longest, self.name, some(cut)),
            )
        tower = getattr(self.network, self.network.config.model_type)
        return text_embeddings(tower, self.tokenizer, texts, ("input_ids", "attention_mask")).cpu()

    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        sides, patch = {**self._numbers(), **numbers}, self.network.config.vision_config.patch_size
        if any(side % patch for side in sides.values()) or (self.square and sides["height"] != sides["width"]):
            raise UserError(
                f"height {sides['height']} and width {sides['width']} do not fit {self.name}; give multiples of its "
                f"patch of {patch} pixels{', both the same' if self.square else ''}"
            )
        super()._set_numbers(numbers)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the scaled image (height, width, 3) uint8; where images are padded to a square, without padding."""
        size = self.processor.size
        height, width = size.height, size.width
        if self.square:
            longer = max(image.size)
            width, height = (max(round(side * size.height / longer), 1) for side in image.size)
        return np.asarray(image.resize((width, height), self.processor.resample))

    def _candidates(self, arrays: Sequence[np.ndarray]) -> Iterable[Candidates]:
        pixels, extent = self._pixels(arrays)
        configured = self.network.config.vision_config.image_size
        interpolate = tuple(pixels.shape[2:]) != (configured, configured)
        feature_map, _ = self.network.image_embedder(pixels, interpolate_pos_encoding=interpolate)
        _, rows, columns, _ = feature_map.shape
        states = feature_map.flatten(1, 2)
        logits, _ = self.network.class_predictor(states, self.queries.to(self.device).expand(len(arrays), -1, -1))
        corners = corners_of(self.network.box_predictor(states, feature_map, interpolate)) / extent.repeat(2)
        across, down = ((torch.arange(count, device=self.device) + 0.5) / count for count in (columns, rows))
        inside = ((down < extent[1])[:, None] & (across < extent[0])).flatten()
        if not inside.any():  # an image narrower than half a patch
            inside[0] = True
        for own_logits, own_corners, own in zip(logits, corners, states, strict=True):
            seen = ((own_corners[:, :2] < 1) & (own_corners[:, 2:] > 0)).all(1)  # the others lie in the padding
            yield Candidates(own_logits[seen].sigmoid(), own_corners[seen], own[seen], own[inside].mean(0))

    def _pixels(self, arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Normalised and padded pixels (B, 3, height, width), and the share (2,) of width and height with image."""
        size = self.processor.size
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2).float() / 255
        height, width = pixels.shape[2:]
        pixels = pad(pixels, (0, size.width - width, 0, size.height - height), value=GREY)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixels - mean) / std, torch.tensor([width / size.width, height / size.height], device=self.device)


class _Chunk(NamedTuple):
    """Names that Grounding DINO reads in one text.

    Attributes:
        start: id of the first name.
        token_ids: (T,) `[CLS] name . name . [SEP]`.
        means: (T, names): how much each token counts for each name; a name's tokens count equally.

    """

    start: int
    token_ids: Tensor
    means: Tensor


class GroundingDinoDetector(OpenVocabularyDetector):
    """Grounding DINO, or MM Grounding DINO (Zhao et al., arXiv 2401.02361).

    The feature of a region is its query's last decoder state, and that of the whole image the mean over all queries.
    The probability of a name is the mean over its tokens, as in the authors' evaluation on COCO; the library's
    post-processing takes the best single token, which is the same where a name is one token.

    A text has at most 256 tokens. A longer vocabulary is read in several, each with as many names as fit, in order;
    their candidates are one list. Each text finds an object anew, so suppression is then across names.
    """

    prompt = "{}."

    def __init__(self, name: str, network: Any, processor: Any, tokenizer: Any, vocabulary: Sequence[str]) -> None:
        # The library's threshold; of two names for one object, both queries may be found.
        selection = Selection(score_threshold=0.25)
        super().__init__(name, network, processor, tokenizer, vocabulary, selection, network.config.d_model)
        self.chunks = self._chunks()

    def _chunks(self) -> list[_Chunk]:
        limit = self.network.config.max_text_len
        stop = self.tokenizer.convert_tokens_to_ids(".")
        texts = [" ".join(name.translate(SEPARATORS).lower().split()) for name in self.classes]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for name, tokens in zip(self.classes, encoded, strict=True):
            if not 0 < len(tokens) <= limit - 3:
                raise UserError(
                    f"the name {short(name)} has {len(tokens)} tokens, and {self.name} reads 1 to {limit - 3}; change "
                    "it in the vocabulary"
                )
        chunks: list[_Chunk] = []
        start = 0
        while start < len(encoded):
            ids, spans = [self.tokenizer.cls_token_id], []
            for tokens in encoded[start:]:
                if len(ids) + len(tokens) + 2 > limit:
                    break
                spans.append((len(ids), len(ids) + len(tokens)))
                ids += [*tokens, stop]
            means = torch.zeros(len(ids) + 1, len(spans))
            for column, (first, last) in enumerate(spans):
                means[first:last, column] = 1 / (last - first)
            chunks.append(_Chunk(start, torch.tensor([*ids, self.tokenizer.sep_token_id]), means))
            start += len(spans)
        return chunks

    def _find(self, probabilities: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        scores, labels = probabilities.max(-1)
        rivals = labels if len(self.chunks) == 1 else torch.zeros_like(labels)
        chosen = select(corners, scores, rivals, self.selection).to(scores.device)
        return chosen, labels[chosen]

    def _candidates(self, arrays: Sequence[np.ndarray]) -> Iterable[Candidates]:
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device)
        probabilities, corners, states = [], [], []
        for chunk in self.chunks:
            output = self.network(
                pixel_values=pixels, input_ids=chunk.token_ids.to(self.device).expand(len(pixels), -1)
            )
            named = output.logits[..., : len(chunk.means)].sigmoid() @ chunk.means.to(self.device)
            probabilities.append(pad(named, (chunk.start, len(self.classes) - chunk.start - named.shape[-1])))
            corners.append(corners_of(output.pred_boxes))
            states.append(output.last_hidden_state)
        parts = [torch.cat(one, dim=1) for one in (probabilities, corners, states)]
        return map(Candidates, *parts, parts[-1].mean(1))


def _opened(place: str | Path, name: str, vocabulary: Sequence[str] | None) -> OpenVocabularyDetector:
    if not vocabulary:
        raise UserError(
            f"{name} is an open-vocabulary detector and needs names to look for; give a file of them as --vocabulary, "
            "without --names-by"
        )
    kind = OwlDetector if family_of(place).startswith("owl") else GroundingDinoDetector
    with opening(place) as transformers:
        folder = fetched(place, "*.json", "*.txt", "*.safetensors")
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        network = whole_model(transformers.AutoModelForZeroShotObjectDetection, folder)
    return kind(name, network, processor, tokenizer, vocabulary)
