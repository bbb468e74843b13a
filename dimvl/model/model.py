"""The whole network: embeddings, encoder and the heads of its task."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from huggingface_hub import PyTorchModelHubMixin
from pydantic import Field, create_model
from torch import Tensor, nn

from dimvl.data.batch import Batch
from dimvl.data.layout import Layout
from dimvl.files import Strict, read_json_as
from dimvl.model.embeddings import RegionEmbeddings, TokenEmbeddings, sinusoids
from dimvl.model.encoder import SPLITS, Encoder, PerModality
from dimvl.model.heads import HEADS, AlignHead, AnswerHead, MatchHead, ObjectHead, RegionHead, Sizes, WordHead
from dimvl.model.plan import AttentionPlan, plan_attention

Size = Annotated[int, Field(ge=1, le=2**24)]
Layers = Annotated[int, Field(ge=0, le=10**4)]
Share = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["gelu", "relu", "silu"]


class DimvlModel(nn.Module, PyTorchModelHubMixin, library_name="dimvl", repo_url=None):
    """One stacked Transformer over regions, tags and text (DiMBERT, TKDD 2021), with the requested heads.

    Arguments are plain values; a run or export stores them in `config.json`, which `read_arguments` checks against the
    annotations of `__init__`.

    Args:
        vocabulary: number of tokens V.
        feature_width: width F of the region features.
        layers: number of blocks.
        width: D.
        heads: attention heads H.
        inner_width: width inside the feed-forward sublayer.
        split: sublayers with one set of weights per modality, a subset of `qkv`, `out`, `norm`, `ffn`.
        max_positions: number of token positions.
        max_images: maximum number of images in a prefix.
        times: whether regions have an embedding of their image's time.
        region_words: whether regions have the embeddings of the words that name them.
        dropout: after embeddings and after each sublayer.
        activation: `gelu`, `relu` or `silu`.
        norm_eps: epsilon of every layer norm.
        requested: the heads, by their arguments in `dimvl.model.heads.HEADS`: `word_head` and `match_head` (bool),
            `classes` K of the object head, `answers` A of the answer head, `labels` of the label head, `aligned` the
            dimensions of the shared space, `grounded` 1 for a score of each region, 2 also for none of them. Heads that
            are not requested are None.

    """

    trained: frozenset[str] | None = None
    """Names of the weights that were trained as an adapter, while all others are those of a base; None without one."""
    word_head: WordHead | None
    object_head: ObjectHead | None
    match_head: MatchHead | None
    answer_head: AnswerHead | None
    align_head: AlignHead | None
    region_head: RegionHead | None
    label_head: AnswerHead | None

    def __init__(
        self,
        *,
        vocabulary: Size,
        feature_width: Size,
        layers: Layers,
        width: Size,
        heads: Size,
        inner_width: Size,
        split: Sequence[str] = ("qkv",),
        max_positions: Size = 512,
        max_images: Size = 4,
        times: bool = False,
        region_words: bool = False,
        dropout: Share = 0.1,
        activation: Activation = "gelu",
        norm_eps: Share = 1e-12,
        **requested: Any,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; choose one that divides it")
        if unknown := set(split) - set(SPLITS):
            raise ValueError(f"split {sorted(unknown)} is unknown; choose from {list(SPLITS)}")
        self.regions = RegionEmbeddings(feature_width, width, max_images, times, region_words, dropout, norm_eps)
        self.tokens = TokenEmbeddings(vocabulary, width, max_positions, dropout, norm_eps)
        self.encoder = Encoder(layers, width, heads, inner_width, split, dropout, activation, norm_eps)
        sizes = Sizes(self.tokens.word, width, feature_width, activation, norm_eps)
        for name, entry in HEADS.items():
            value = requested.pop(entry.argument, 0)
            setattr(self, name, entry.build(value, sizes) if value else None)
        if requested:
            raise TypeError(f"DimvlModel has no argument {', '.join(requested)}")
        if not self.tokens.position.weight.is_meta:  # shapes alone have no values
            initialise(self)

    def embed(self, batch: Batch) -> Tensor:
        """Embed a batch: (N, D), visual rows first."""
        regions = self.regions(
            batch.region_features,
            batch.region_feature_scales,
            batch.region_geometry,
            batch.region_hidden,
            batch.region_image_index,
            batch.region_times,
            *(() if self.regions.words is None else self._words(batch)),
        )
        return torch.cat([regions, self.tokens(batch.token_ids, batch.positions, batch.segments)])

    def _words(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean embedding of the words of each region (Nv, D), and which regions have any (Nv,).

        The word embedding is called for a batch without words too: with ZeRO 3 all ranks must call the same modules.
        """
        ids, weights, offsets = batch.region_word_ids, batch.region_word_weights, batch.region_word_offsets
        if ids is None or weights is None or offsets is None:
            ids, weights = batch.token_ids[:0], batch.region_geometry.new_zeros(0)
            offsets = batch.token_ids.new_zeros(batch.layout.num_vision + 1)
        return self.tokens.word(ids, offsets, weights), offsets.diff() > 0

    def forward(self, batch: Batch) -> Tensor:
        """Embed and encode a batch: (N, D)."""
        return self.encoder(self.embed(batch), self.plan(batch.layout, batch.token_ids.device))

    def plan(self, layout: Layout, device: torch.device) -> AttentionPlan:
        """Plan which rows of a batch attend to which."""
        return plan_attention(layout, device, self.encoder.learned)


def read_arguments(path: Path, remedy: str) -> dict[str, Any]:
    """Read the arguments of a model from its `config.json`; those that an earlier version did not write, as defaults.

    Raises:
        UserError: one is missing, unknown, of another type or out of range.

    """
    hints = get_type_hints(DimvlModel.__init__, include_extras=True)
    parameters = inspect.signature(DimvlModel.__init__).parameters.values()
    own: dict[str, Any] = {
        given.name: (hints[given.name], ... if given.default is given.empty else given.default)
        for given in parameters
        if given.kind is given.KEYWORD_ONLY
    }
    requested: dict[str, Any] = {entry.argument: (bool | Size | Literal[0], 0) for entry in HEADS.values()}
    form = create_model("ModelArguments", __base__=Strict, **own, **requested)
    return read_json_as(path, form, remedy).model_dump()


def initialise(model: DimvlModel) -> None:
    """Initialise all weights.

    BERT's fixed std of .02 is small at small widths: attention starts flat and learns late. Where keys start as copies
    of queries, a row attends to rows like itself: at step 0 a word finds the tag of the same name and, since
    neighbouring positions have similar embeddings, the words beside it. A region has its words unchanged, so a word of
    the text finds the region that it names.

    | weights                                    | drawn from                         |
    |--------------------------------------------|------------------------------------|
    | linear                                     | normal, std 1 / sqrt(inputs)       |
    | embeddings, segment, hidden region         | normal, std 1 / sqrt(width)        |
    | embedding of positions                     | sinusoids, see `sinusoids`         |
    | key projection                             | a copy of the query projection     |
    | biases                                     | 0                                  |
    | bias of the answers, and of the labels     | log(1 / A): most are wrong         |
    | layer norms                                | 1 and 0                            |
    | embedding of the first image's index       | 0                                  |
    | projection of times                        | 0                                  |
    | projection of the words of regions         | the identity                       |
    | visual weights of a split sublayer         | a copy of its language weights     |
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
    if model.regions.time is not None:
        nn.init.zeros_(model.regions.time.weight)
    if model.regions.words is not None:
        nn.init.eye_(model.regions.words.weight)
    positions, width = model.tokens.position.weight.shape
    model.tokens.position.weight.data.copy_(sinusoids(torch.arange(positions), width))
    nn.init.normal_(model.regions.segment, std=len(model.regions.segment) ** -0.5)
    nn.init.normal_(model.regions.hidden_feature, std=len(model.regions.segment) ** -0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.language.weight"):
            query, key, _ = parameter.data.chunk(3)
            key.copy_(query)
    for head in (model.answer_head, model.label_head):
        if head is not None:
            nn.init.constant_(head.outer.bias, -math.log(head.outer.out_features))
    copy_language_to_vision(model)


def copy_language_to_vision(model: nn.Module) -> None:
    """Make every split sublayer compute the same function for both modalities."""
    for module in model.modules():
        if isinstance(module, PerModality) and module.vision is not None:
            module.vision.load_state_dict(module.language.state_dict())
