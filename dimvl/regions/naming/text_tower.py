"""Names of regions from a vocabulary file, by the text tower of CLIP or SigLIP.

The region's feature must be that of the same model's image tower (`--features`): the mean of the last states of its
patches within the box. It goes into the space of the texts as an image's does, as far as one vector can:

- CLIP (Radford et al., ICML 2021): by the tower's last norm and its projection, trained on the class token only.
- SigLIP (Zhai et al., ICCV 2023): by the pooling head, with this one vector to attend to. All attention then goes to
  it, so the head is a linear map (its values, then its output) and an MLP: the values of the last attention as dense
  features, as in MaskCLIP (Zhou et al., ECCV 2022). MaskCLIP's map of CLIP needs the states before the last layer,
  which a region's feature does not have.

Scores are the model's own: a softmax over the vocabulary with CLIP's temperature; for each name a sigmoid with SigLIP's
temperature and bias. The embeddings of the names are computed once and saved, so a saved namer needs no text tower.

Letters: R regions, F feature width, K names, D width of the text space.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.files import Sha256, Strict, check_values, read_sealed, write_sealed
from dimvl.files.weights import load_weights, save_weights
from dimvl.regions.backbones.transformers_models import TransformersBackbone
from dimvl.regions.detectors.settings import loaded
from dimvl.regions.detectors.transformers_models import (
    family_of,
    fetched,
    is_hub_name,
    opening,
    text_embeddings,
    whole_model,
)
from dimvl.regions.detectors.weights import fingerprint
from dimvl.regions.naming.base import NAMES_KEPT, SETTINGS, Namer
from dimvl.regions.records import Extractor

WEIGHTS = "names.safetensors"
REMEDY = "copy the folder again"
TOWER = "text tower"
PROMPTS = {"clip": "a photo of a {}.", "siglip": "this is a photo of {}."}
"""What the text tower reads for a name, as the authors' zero-shot classifiers."""


class _Settings(Strict):
    """`called.json`.

    Attributes:
        tower: name of the model.
        names: by id.
        prompt: what the text tower read for each.
        looks: fingerprint of the model's image tower as a backbone.
        widths: F, D, and that of the MLP of SigLIP's head (0 for CLIP).
        eps: of the norm.
        fingerprint: of weights, names and prompt.

    """

    kind: Literal["text"] = "text"
    version: Literal[1] = 1
    family: Literal["clip", "siglip"]
    tower: str
    names: tuple[str, ...] = Field(min_length=1, max_length=2**15 - 1)
    prompt: str
    looks: Sha256
    widths: tuple[int, int, int]
    eps: float
    fingerprint: Sha256


class TextSpace(nn.Module):
    """Region features to logits of names.

    Args:
        feature_width: F.
        text_width: D; F for SigLIP.
        mlp_width: of the MLP of SigLIP's head; 0 for CLIP.
        names: K.
        eps: of the norm.

    """

    def __init__(self, feature_width: int, text_width: int, mlp_width: int, names: int, eps: float) -> None:
        super().__init__()
        self.widths = (feature_width, text_width, mlp_width)
        self.norm = nn.LayerNorm(feature_width, eps=eps)
        self.projection = nn.Linear(feature_width, text_width, bias=mlp_width > 0)
        self.mlp = (
            nn.Sequential(
                nn.Linear(feature_width, mlp_width), nn.GELU(approximate="tanh"), nn.Linear(mlp_width, feature_width)
            )
            if mlp_width
            else None
        )
        self.texts = nn.Parameter(torch.zeros(names, text_width))  # of length 1
        self.scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def embed(self, features: Tensor) -> Tensor:
        """Map features (R, F) into the text space (R, D), to length 1."""
        if self.mlp is None:
            return F.normalize(self.projection(self.norm(features)), dim=-1)
        values = self.projection(features)
        return F.normalize(values + self.mlp(self.norm(values)), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (R, K) of features (R, F)."""
        logits: Tensor = self.embed(features) @ self.texts.T * self.scale + self.bias
        return logits


class TextNamer(Namer):
    """A vocabulary as a text tower reads it, ready for use: see `Namer`.

    Args:
        family: `clip` or `siglip`.
        tower: readable name of the model.
        network: weights.
        names: by id.
        looks: fingerprint of the model's image tower as a backbone.

    """

    def __init__(self, family: str, tower: str, network: TextSpace, names: Sequence[str], looks: str) -> None:
        self.family = family
        self.tower = tower
        self.network = network.eval().requires_grad_(False)
        self.names = tuple(names)
        self.looks = looks
        self.prompt = PROMPTS[family]
        self.fingerprint = fingerprint(network.state_dict(), family, self.prompt, *map(repr, self.names))

    @classmethod
    def create(cls, place: str | Path, vocabulary: Sequence[str]) -> "TextNamer":
        """Embed a vocabulary.

        Args:
            place: a folder of `save_pretrained`, or a name on the hub, `owner/name[@revision]`.
            vocabulary: the names.

        Raises:
            UserError: transformers is not installed, or the model does not exist, is of another family or has no
                safetensors weights.

        """
        place = Path(place) if Path(place).is_dir() else str(place)
        if isinstance(place, str) and not is_hub_name(place, TOWER):
            raise UserError(f"{TOWER} {place} does not exist; check the path")
        family = family_of(place, TOWER)
        if family not in PROMPTS:
            raise UserError(f"{TOWER} {place} is of the family {family}; use one of {', '.join(PROMPTS)}")
        with opening(place, TOWER) as transformers:
            folder = fetched(place, "*.json", "*.txt", "*.model", "*.safetensors")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = whole_model(transformers.AutoModel, folder)
            network = (_of_clip if family == "clip" else _of_siglip)(model, len(vocabulary))
            texts = [PROMPTS[family].format(name) for name in vocabulary]
            # The padding is not masked: SigLIP was trained to see it, and CLIP's text tower looks backward only.
            _set(network.texts, text_embeddings(model, tokenizer, texts, ["input_ids"]))
        name = place.name if isinstance(place, Path) else place
        return cls(family, name, network, vocabulary, TransformersBackbone.create(place).fingerprint)

    @torch.inference_mode()
    def name(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Namer.name`."""
        logits = self.network(features)
        probabilities = logits.softmax(-1) if self.family == "clip" else logits.sigmoid()
        scores, ids = probabilities.topk(min(NAMES_KEPT, len(self.names)), dim=1)
        return ids, scores

    def check_features(self, extractor: Extractor) -> None:
        """See `Namer.check_features`."""
        if extractor.looks != self.looks:
            raise UserError(
                f"the {TOWER} of {self.tower} does not belong to the model of these features ({extractor.name}); "
                f"give {self.tower} as --features too, or the model of the features as --names-by"
            )

    def save(self, folder: Path) -> None:
        """See `Namer.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.network.state_dict())
        settings = _Settings(
            family=self.family,  # type: ignore[arg-type]
            tower=self.tower,
            names=self.names,
            prompt=self.prompt,
            looks=self.looks,
            widths=self.network.widths,
            eps=self.network.norm.eps,
            fingerprint=self.fingerprint,
        )
        write_sealed(folder / SETTINGS, settings.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "TextNamer":
        """See `Namer.load`."""
        settings = check_values(read_sealed(folder / SETTINGS, REMEDY), _Settings, folder / SETTINGS, REMEDY)
        damaged = f"{folder / WEIGHTS} is damaged, or does not belong to {SETTINGS}; {REMEDY}"
        shape = (*settings.widths, len(settings.names), settings.eps)
        network = loaded(lambda: TextSpace(*shape), load_weights(folder / WEIGHTS, REMEDY), damaged)
        namer = cls(settings.family, settings.tower, network, settings.names, settings.looks)
        if namer.fingerprint != settings.fingerprint:
            raise UserError(damaged)
        return namer


def _set(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values.detach())


def _of_clip(model: Any, names: int) -> TextSpace:
    """Copy the last norm and the projection of the image tower, and the temperature."""
    config = model.config.vision_config
    network = TextSpace(config.hidden_size, model.config.projection_dim, 0, names, config.layer_norm_eps)
    network.norm.load_state_dict(model.vision_model.post_layernorm.state_dict())
    network.projection.load_state_dict(model.visual_projection.state_dict())
    _set(network.scale, model.logit_scale.exp())
    return network


def _of_siglip(model: Any, names: int) -> TextSpace:
    """Copy the pooling head of the image tower as it is for one vector, and temperature and bias.

    With weights softmax(one number) = 1, attention is W_out (W_v x + b_v) + b_out.
    """
    config = model.config.vision_config
    if not config.vision_use_head or config.hidden_act != "gelu_pytorch_tanh":
        raise UserError(f"{model.config.model_type} without its usual pooling head gives no names; use another model")
    width, head = config.hidden_size, model.vision_model.head
    network = TextSpace(width, width, config.intermediate_size, names, config.layer_norm_eps)
    assert network.mlp is not None
    value, value_bias = head.attention.in_proj_weight[2 * width :], head.attention.in_proj_bias[2 * width :]
    out = head.attention.out_proj
    _set(network.projection.weight, out.weight @ value)
    _set(network.projection.bias, out.weight @ value_bias + out.bias)
    network.norm.load_state_dict(head.layernorm.state_dict())
    network.mlp[0].load_state_dict(head.mlp.fc1.state_dict())
    network.mlp[2].load_state_dict(head.mlp.fc2.state_dict())
    _set(network.scale, model.logit_scale.exp().squeeze())
    _set(network.bias, model.logit_bias.squeeze())
    return network
