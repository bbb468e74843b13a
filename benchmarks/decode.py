"""Captions by beam search: ours, VLP's decoding policy on the same weights, and BLIP's text decoder under `generate`.

VLP's policy (Zhou et al., AAAI 2020) keeps hidden states instead of keys and values and projects the whole history
anew in every step, copies the prefix for each beam, and always takes all steps. It is written here over the same model,
so its captions must be equal to ours. BLIP's decoder (transformers) has random weights of the same width and layers, and
gets image embeddings of as many rows as our prefix; what would compute them is left out, while all of our times hold
our prefix.

"fixed": no text may end before the last step, so all variants take equally many. "drawn": each image's texts end at a
length drawn as those of published captions are, whatever their words; VLP's policy goes on to the last step.

The kernels are those of a Predictor (linear layers laid out by oneDNN) for ours and for VLP's policy; for BLIP both
those of torch, as it comes, and the same as ours.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import interleaved, ratio
from dimvl.data.batch import Batch
from dimvl.data.documents import BatchShape, Document, Prefix, Text, collate
from dimvl.decoding import CachedDecoder, DecodingOptions, Hypothesis, NextWords, beam_search
from dimvl.model.attention import attend
from dimvl.model.model import DimvlModel
from dimvl.model.packed import pack_linears
from dimvl.model.plan import plan_attention

LENGTHS = (11.6, 2.3)
"""Mean and deviation of the word pieces of COCO's captions, [SEP] counted; clipped to 6 and the longest."""
TOKENIZER = SimpleNamespace(cls=101, sep=102, mask=103, special_ids=frozenset({0, 100, 101, 102, 103}))


@dataclass(frozen=True)
class Sizes:
    """What is measured; tokens as in BERT's vocabulary."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    inner_width: int = 3072
    vocabulary: int = 30522
    regions: int = 100
    context: int = 16
    feature_width: int = 2048
    steps: int = 16
    beams: int = 5
    batches: tuple[int, ...] = (1, 8, 64)
    checked: int = 8

    @property
    def processor(self) -> Any:
        """What a decoder asks of a processor."""
        return SimpleNamespace(tokenizer=TOKENIZER, variant="causal", text_start=self.context)


SMALL = Sizes(
    layers=2, width=32, heads=4, inner_width=64, vocabulary=300, regions=10, feature_width=16, steps=6, beams=3,
    batches=(1, 3), checked=3,
)  # fmt: skip


class HiddenStateCache:
    """VLP's cache: the rows that go into each layer, copied for each beam; prefixes are equally long here."""

    def __init__(self, model: DimvlModel, layers: "list[_Projections]", sizes: Sizes, prefixes: Batch) -> None:
        self.model, self.layers, self.sizes = model, layers, sizes
        plan = plan_attention(prefixes.layout, prefixes.token_ids.device)
        self.images, self.length = len(prefixes.layout.num_regions), 0
        self.going = torch.arange(self.images, device=prefixes.token_ids.device)
        self.history: list[Tensor] = []  # of each layer (B * K, P + T, D)
        rows = model.embed(prefixes)
        for layer in model.encoder.layers:
            vision, context = rows[: plan.num_vision], rows[plan.num_vision :]
            self.history.append(torch.cat([part.unflatten(0, (self.images, -1)) for part in (vision, context)], dim=1))
            query, key, value = layer.project(rows, plan.num_vision)
            rows = layer.finish(rows, attend(plan, query, key, value).flatten(1), plan.num_vision)

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        return self._feed(torch.full((self.images, 1), TOKENIZER.cls, device=self.history[0].device))

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Copy the whole history of each hypothesis' parent: (B, K), (B, K) -> (B, K, V)."""
        before = len(self.history[0]) // self.images
        every = torch.zeros(2, self.images, parents.shape[1], dtype=torch.long, device=parents.device)
        every[:, self.going] = torch.stack([parents, tokens])
        first = before * torch.arange(self.images, device=parents.device)[:, None]
        self.history = [rows.index_select(0, (every[0] + first).flatten()) for rows in self.history]
        return self._feed(every[1])[self.going]

    def keep(self, images: Tensor) -> None:
        """Tell of these images only; all take all steps nevertheless."""
        self.going = self.going[images]

    def _feed(self, tokens: Tensor) -> Tensor:
        """(B, K) new tokens -> (B, K, V)."""
        flat = tokens.flatten()
        positions = torch.full_like(flat, self.sizes.context + self.length)
        rows = self.model.tokens(flat, positions, torch.ones_like(flat))
        for index, (layer, projections) in enumerate(zip(self.model.encoder.layers, self.layers, strict=True)):
            self.history[index] = torch.cat([self.history[index], rows[:, None]], dim=1)
            attended = projections.attend(rows, self.history[index], self.sizes.regions)
            rows = layer.finish(rows, attended, 0)
        self.length += 1
        scores = self.model.word_head(rows).log_softmax(dim=-1)
        scores[:, sorted(TOKENIZER.special_ids - {TOKENIZER.sep})] = float("-inf")
        return scores.unflatten(0, tokens.shape)


class _Projections(nn.Module):
    """The projections of a block by themselves, as VLP's policy calls them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.heads, width, qkv = block.heads, block.heads * block.head_width, block.qkv
        self.query = _rows_of(qkv.language, slice(0, width))
        self.language = _rows_of(qkv.language, slice(width, None))
        self.vision = _rows_of(qkv.vision or qkv.language, slice(width, None))

    def attend(self, rows: Tensor, history: Tensor, regions: int) -> Tensor:
        """New rows (M, D) over keys and values made anew of (M, P + T, D)."""
        pairs = torch.cat([self.vision(history[:, :regions]), self.language(history[:, regions:])], dim=1)
        key, value = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(rows)[:, None].unflatten(2, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


def _rows_of(linear: nn.Linear, chosen: slice) -> nn.Linear:
    part = nn.Linear(linear.in_features, len(linear.weight[chosen]))
    part.weight, part.bias = nn.Parameter(linear.weight[chosen].detach()), nn.Parameter(linear.bias[chosen].detach())
    return part


class WithoutCache:
    """The reference: all that was fed so far goes through the model again in every step."""

    def __init__(self, model: DimvlModel, sizes: Sizes, prefixes: list[Prefix]) -> None:
        self.model, self.sizes, self.prefixes = model, sizes, prefixes

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        self.texts = [[[TOKENIZER.cls]] for _ in self.prefixes]
        return self._scores()

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Grow hypotheses: (B, K), (B, K) -> (B, K, V)."""
        self.texts = [
            [[*texts[parent], token] for parent, token in zip(*pair, strict=True)]
            for texts, *pair in zip(self.texts, parents.tolist(), tokens.tolist(), strict=True)
        ]
        return self._scores()

    def keep(self, images: Tensor) -> None:
        """Go on with these images only."""
        chosen = images.tolist()
        self.texts, self.prefixes = [self.texts[n] for n in chosen], [self.prefixes[n] for n in chosen]

    def _scores(self) -> Tensor:
        batch = lay_out(self.sizes, self.prefixes, self.texts)
        last = batch.layout.text_starts + batch.layout.text_lengths - 1
        scores = self.model.word_head(self.model(batch)[last]).log_softmax(dim=-1)
        scores[:, sorted(TOKENIZER.special_ids - {TOKENIZER.sep})] = float("-inf")
        return scores.unflatten(0, (len(self.texts), -1))


class Ending:
    """Lets the texts of each image end at a length of its own (B,), [SEP] counted, and no sooner."""

    def __init__(self, inner: NextWords, lengths: Tensor) -> None:
        self.inner, self.lengths, self.place = inner, lengths, 0

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        return self._changed(self.inner.start())

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Grow hypotheses: (B, K), (B, K) -> (B, K, V)."""
        return self._changed(self.inner.advance(parents, tokens))

    def keep(self, images: Tensor) -> None:
        """Go on with these images only."""
        self.inner.keep(images)
        self.lengths = self.lengths[images]

    def _changed(self, scores: Tensor) -> Tensor:
        self.place += 1
        over = self.lengths <= self.place
        scores[..., TOKENIZER.sep] = torch.where(over, 0.0, float("-inf"))[:, None]
        scores[over] -= 1000.0 * (torch.arange(scores.shape[-1], device=scores.device) != TOKENIZER.sep)
        return scores


def lay_out(sizes: Sizes, prefixes: list[Prefix], texts: list[list[list[int]]] | None = None) -> Batch:
    """Make a batch of prefixes, with the words fed so far of each one's texts."""
    nothing = np.zeros(0, dtype=np.int64)
    given = texts or [[] for _ in prefixes]
    documents = [
        Document(
            source="",
            objective="",
            prefix=prefix,
            texts=[Text(token_ids=np.array(ids), places=nothing, labels=nothing, has_start=True) for ids in own],
            seq2seq=True,
        )
        for prefix, own in zip(prefixes, given, strict=True)
    ]
    return collate(documents, BatchShape(objectives={}, text_start=sizes.context, feature_width=sizes.feature_width))


def make_prefixes(sizes: Sizes, count: int) -> list[Prefix]:
    """Draw prefixes of equal length."""
    generator = np.random.default_rng(0)
    corners = generator.random((count, sizes.regions, 2, 2), dtype=np.float32)
    boxes = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=2)
    return [
        Prefix(
            features=generator.normal(size=(sizes.regions, sizes.feature_width)).astype(np.float16),
            boxes=boxes[number],
            image_index=np.zeros(sizes.regions, dtype=np.int64),
            hidden=np.zeros(sizes.regions, dtype=bool),
            context=generator.integers(104, sizes.vocabulary, sizes.context),
        )
        for number in range(count)
    ]


def make_model(sizes: Sizes) -> DimvlModel:
    """Draw a model whose next words differ enough for rounding to change none of them."""
    torch.manual_seed(0)
    model = DimvlModel(
        vocabulary=sizes.vocabulary,
        feature_width=sizes.feature_width,
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        inner_width=sizes.inner_width,
        word_head=True,
    ).eval()
    with torch.no_grad():
        model.word_head.transform.norm.weight.mul_(4)
    return model


def make_blip(sizes: Sizes) -> Any:
    """Draw BLIP's text decoder; its attention has one implementation, its best one."""
    from dimvl.regions.torchvision_ops import import_torchvision

    import_torchvision()  # transformers imports it
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    config = BlipTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        encoder_hidden_size=sizes.width,
        intermediate_size=sizes.inner_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=512,
        is_decoder=True,
        bos_token_id=TOKENIZER.cls,
        eos_token_id=TOKENIZER.sep,
        sep_token_id=TOKENIZER.sep,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return BlipTextLMHeadModel(config).eval()


class Variants:
    """The models, and how each captions a batch."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        plain = make_model(sizes).to(self.device)
        self.projections = [_Projections(block) for block in plain.encoder.layers]
        self.packed, self.blip = copy.deepcopy(plain), make_blip(sizes).to(self.device)
        self.plain, self.packed_blip = plain, copy.deepcopy(self.blip)
        for module in (self.packed, self.packed_blip, *self.projections):
            pack_linears(module)

    def search(self, words: NextWords, lengths: Tensor, beams: int, every_step: bool = False) -> list[list[Hypothesis]]:
        """Search for one caption of each image."""
        options = DecodingOptions(beams=beams, max_tokens=self.sizes.steps)
        everywhere = (lambda _: False) if every_step else bool
        return beam_search(Ending(words, lengths), TOKENIZER.sep, options, everywhere, wanted=1)

    def ours(self, prefixes: list[Prefix], lengths: Tensor, beams: int, plain: bool = False) -> Any:
        """As a Predictor does, or with torch's own linear layers."""
        batch = lay_out(self.sizes, prefixes).to(self.device)
        model = self.plain if plain else self.packed
        return self.search(CachedDecoder(model, self.sizes.processor, batch), lengths, beams)

    def vlp(self, prefixes: list[Prefix], lengths: Tensor, beams: int) -> Any:
        """Do as VLP's policy does."""
        batch = lay_out(self.sizes, prefixes).to(self.device)
        words = HiddenStateCache(self.packed, self.projections, self.sizes, batch)
        return self.search(words, lengths, beams, every_step=True)

    def without_cache(self, prefixes: list[Prefix], lengths: Tensor, beams: int) -> Any:
        """Feed everything again in every step."""
        return self.search(WithoutCache(self.packed, self.sizes, prefixes), lengths, beams)

    def generate(self, images: Tensor, lengths: Tensor, beams: int, packed: bool) -> Tensor:
        """(B, P, D) image embeddings -> BLIP's token ids (B, at most 1 + steps)."""

        def end(ids: Tensor, scores: Tensor) -> Tensor:
            over = lengths.repeat_interleave(len(ids) // len(lengths)) <= ids.shape[1]
            scores[:, TOKENIZER.sep] = torch.where(over, 0.0, float("-inf"))
            scores[over] -= 1000.0 * (torch.arange(scores.shape[1], device=scores.device) != TOKENIZER.sep)
            return scores

        return (self.packed_blip if packed else self.blip).generate(
            input_ids=torch.full((len(images), 1), TOKENIZER.cls, device=self.device),
            encoder_hidden_states=images,
            num_beams=beams,
            max_new_tokens=self.sizes.steps,
            do_sample=False,
            logits_processor=[end],
        )


def check(variants: Variants) -> dict[str, Any]:
    """Compare captions of all variants of ours and of VLP's policy; BLIP must take as many steps.

    Raises:
        SystemExit: captions of the best hypotheses differ, or numbers of steps do.

    """
    sizes = variants.sizes
    prefixes = make_prefixes(sizes, sizes.checked)
    found: dict[str, Any] = {}
    for name, lengths in endings(sizes, sizes.checked).items():
        lengths = lengths.to(variants.device)
        wanted = variants.ours(prefixes, lengths, sizes.beams)
        others = {
            "torch's linear layers": variants.ours(prefixes, lengths, sizes.beams, plain=True),
            "VLP's policy": variants.vlp(prefixes, lengths, sizes.beams),
            "no cache": variants.without_cache(prefixes, lengths, sizes.beams),
        }
        for other, given in others.items():
            pairs = list(zip(wanted, given, strict=True))
            if any(ours[0].token_ids != theirs[0].token_ids for ours, theirs in pairs):
                raise SystemExit(f"{other}: a caption differs from ours with {name} lengths")
            difference = max(abs(ours[0].log_probability - theirs[0].log_probability) for ours, theirs in pairs)
            found[f"{other}, {name}"] = {"captions": len(pairs), "largest_difference": float(f"{difference:.1e}")}
        given_lengths = [len(hypotheses[0].token_ids) + 1 for hypotheses in wanted]
        images = torch.randn(sizes.checked, sizes.regions + sizes.context, sizes.width, device=variants.device)
        ids = variants.generate(images, lengths, sizes.beams, packed=False)[:, 1:]
        theirs = [row.index(TOKENIZER.sep) + 1 for row in ids.tolist()]
        if not given_lengths == theirs == lengths.tolist():
            raise SystemExit(f"lengths differ: ours {given_lengths}, BLIP {theirs}, wanted {lengths.tolist()}")
    return found


def endings(sizes: Sizes, count: int) -> dict[str, Tensor]:
    """Where the texts of each image end: (B,) each."""
    drawn = np.random.default_rng(1).normal(*LENGTHS, count).round().clip(min(6, sizes.steps), sizes.steps)
    return {"fixed": torch.full((count,), sizes.steps), "drawn": torch.from_numpy(drawn.astype(np.int64))}


def measure(variants: Variants, count: int, lengths: Tensor, beams: int, rounds: int) -> dict[str, Any]:
    """Time of a batch by each variant."""
    sizes = variants.sizes
    prefixes, lengths = make_prefixes(sizes, count), lengths.to(variants.device)
    images = torch.randn(count, sizes.regions + sizes.context, sizes.width, device=variants.device)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: variants.ours(prefixes, lengths, beams),
        "ours, torch's linear layers": lambda: variants.ours(prefixes, lengths, beams, plain=True),
        "VLP's policy, our kernels": lambda: variants.vlp(prefixes, lengths, beams),
        "BLIP's decoder": lambda: variants.generate(images, lengths, beams, packed=False),
        "BLIP's decoder, our kernels": lambda: variants.generate(images, lengths, beams, packed=True),
    }
    if count == 1:
        runs["ours without cache"] = lambda: variants.without_cache(prefixes, lengths, beams)
    seconds = interleaved(runs, rounds, variants.device.type)
    return {
        name: {
            "captions_per_second": round(count / float(np.median(spent)), 3),
            "times_slower": ratio(spent, seconds["ours"]),
        }
        for name, spent in seconds.items()
    }


@torch.inference_mode()
def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure beams and greedy search at several batch sizes."""
    sizes = SMALL if small else Sizes()
    variants = Variants(sizes, device)
    facts: dict[str, Any] = {"sizes": {**replace(sizes).__dict__}, "checked": check(variants), "batches": {}}
    for beams in (sizes.beams, 1):
        for count in sizes.batches:
            for name, lengths in endings(sizes, count).items():
                found = measure(variants, count, lengths, beams, rounds)
                facts["batches"].setdefault(f"{beams} beams", {}).setdefault(name, {})[str(count)] = found
    return facts
