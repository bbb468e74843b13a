"""Captions by beam search: ours, VLP's decoding policy on the same weights, and BLIP's text decoder under `generate`.

    python -m benchmarks decode

VLP's policy (Zhou et al., AAAI 2020) caches hidden states instead of keys and values and projects the whole history
again in every step, copies the prefix for each beam, and always takes all steps. It is written here over the same
model, with one row per step as ours, so its captions must be equal. BLIP's decoder (transformers) has random weights of
the same width and number of layers, and gets image embeddings with as many rows as our prefix. The computation of these
embeddings is not timed, while our times include the prefix; "our prefix alone" is its share.

"fixed": no text may end before the last step, so all variants take equally many. "drawn": each image's texts end at a
length drawn for it, whatever their words; VLP's policy still takes all steps.

Ours and VLP's policy use the kernels of a Predictor (linear layers packed by oneDNN); BLIP is measured both as it comes
and with the same packed layers. Nothing is compiled: docs/performance.md says why.

Letters: B images, K beams, M = B * K rows of a step, P prefix rows, T words so far, D width, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import VOCABULARY, ModelSize, part_modalities, random_boxes
from benchmarks.harness import interleaved, speeds
from dimvl.cpu.packed import pack_linears
from dimvl.data.batch import Batch
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import Prefix
from dimvl.decoding import CachedDecoder, DecodingOptions, Hypothesis, NextWords, beam_search
from dimvl.model.attention import attend
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention
from dimvl.regions.detectors.torchvision_ops import import_torchvision

OURS, BLIP, PACKED_BLIP = "ours", "BLIP's decoder", "BLIP's decoder, our kernels"
LENGTHS = (11.6, 2.3)  # mean and standard deviation of drawn lengths: ten or eleven words and [SEP]
TOKENIZER = SimpleNamespace(cls=101, sep=102, mask=103, unwritten_ids=[0, 100, 101, 103])


@dataclass(frozen=True, kw_only=True)
class Sizes(ModelSize):
    """What is measured; tokens as in BERT's vocabulary."""

    vocabulary: int = VOCABULARY
    context: int = 16
    steps: int = 16
    beams: int = 5
    batches: tuple[int, ...] = (1, 8, 64)
    checked: int = 8

    @property
    def processor(self) -> Any:
        """What a decoder needs of a processor."""
        return SimpleNamespace(tokenizer=TOKENIZER, variant="causal", text_start=self.context)


SMALL = Sizes(
    layers=2, width=32, heads=4, vocabulary=300, regions=10, feature_width=16, steps=6, beams=3,
    batches=(1, 3), checked=3,
)  # fmt: skip


class HiddenStateCache:
    """VLP's cache: the rows that enter each layer, copied for each beam. All prefixes have equal length here."""

    def __init__(self, model: DimvlModel, layers: "list[Projections]", sizes: Sizes, prefixes: Batch) -> None:
        self.model, self.layers, self.sizes = model, layers, sizes
        plan = plan_attention(prefixes.layout, prefixes.token_ids.device)
        self.images, self.length = len(prefixes.layout.num_regions), 0
        self.unfinished = torch.arange(self.images, device=prefixes.token_ids.device)
        self.history: list[Tensor] = []  # for each layer (B * K, P + T, D)
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
        every[:, self.unfinished] = torch.stack([parents, tokens])
        first = before * torch.arange(self.images, device=parents.device)[:, None]
        self.history = [rows.index_select(0, (every[0] + first).flatten()) for rows in self.history]
        return self._feed(every[1])[self.unfinished]

    def keep(self, images: Tensor) -> None:
        """Return scores of these images only from now on; all images still take all steps."""
        self.unfinished = self.unfinished[images]

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
        scores[:, TOKENIZER.unwritten_ids] = float("-inf")
        return scores.unflatten(0, tokens.shape)


class Projections(nn.Module):
    """The projections of a block as separate layers, as VLP's policy calls them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.heads, width, qkv = block.heads, block.heads * block.head_width, block.qkv
        self.query = _rows_of(qkv.language, slice(0, width))
        self.language = _rows_of(qkv.language, slice(width, None))
        self.vision = _rows_of(qkv.vision or qkv.language, slice(width, None))

    def attend(self, rows: Tensor, history: Tensor, regions: int) -> Tensor:
        """Attend from new rows (M, D) to keys and values recomputed from (M, P + T, D)."""
        pairs = torch.cat([self.vision(history[:, :regions]), self.language(history[:, regions:])], dim=1)
        key, value = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(rows)[:, None].unflatten(2, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


def _rows_of(linear: nn.Linear, chosen: slice) -> nn.Linear:
    part = nn.Linear(linear.in_features, len(linear.weight[chosen]))
    part.weight, part.bias = nn.Parameter(linear.weight[chosen].detach()), nn.Parameter(linear.bias[chosen].detach())
    return part


def make_blip(sizes: Sizes) -> Any:
    """Make BLIP's text decoder with random weights; it has only one implementation of attention."""
    import_torchvision()  # transformers imports it
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    arguments = {"vocab_size": sizes.vocabulary, "max_position_embeddings": 512, "is_decoder": True}
    arguments |= {"hidden_size": sizes.width, "encoder_hidden_size": sizes.width, "intermediate_size": 4 * sizes.width}
    arguments |= {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads}
    arguments |= {"bos_token_id": TOKENIZER.cls, "eos_token_id": TOKENIZER.sep, "sep_token_id": TOKENIZER.sep}
    torch.manual_seed(0)
    return BlipTextLMHeadModel(BlipTextConfig(**arguments, pad_token_id=0)).eval()


def end_texts(scores: Tensor, over: Tensor) -> Tensor:
    """Force [SEP] where a text is over, and forbid it elsewhere: (B, ..., V), (B,) -> (B, ..., V)."""
    scores[..., TOKENIZER.sep] = torch.where(over, 0.0, float("-inf")).reshape(-1, *[1] * (scores.ndim - 2))
    scores[over] -= 1000.0 * (torch.arange(scores.shape[-1], device=scores.device) != TOKENIZER.sep)
    return scores


class Ending:
    """Ends the texts of each image at a given length (B,), counting [SEP]."""

    def __init__(self, inner: NextWords, lengths: Tensor) -> None:
        self.inner, self.lengths, self.place = inner, lengths, 0

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        return self._changed(self.inner.start())

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Extend hypotheses: (B, K), (B, K) -> (B, K, V)."""
        return self._changed(self.inner.advance(parents, tokens))

    def keep(self, images: Tensor) -> None:
        """Continue with these images only."""
        self.inner.keep(images)
        self.lengths = self.lengths[images]

    def _changed(self, scores: Tensor) -> Tensor:
        self.place += 1
        return end_texts(scores, self.lengths <= self.place)


def make_prefixes(sizes: Sizes, count: int) -> list[Example]:
    """Make examples of random prefixes of equal length, without texts."""
    generator = np.random.default_rng(0)
    prefixes = [
        Prefix(
            features=generator.normal(size=(sizes.regions, sizes.feature_width)).astype(np.float16),
            boxes=random_boxes(generator, sizes.regions),
            image_index=np.zeros(sizes.regions, dtype=np.int64),
            hidden=np.zeros(sizes.regions, dtype=bool),
            context=generator.integers(104, sizes.vocabulary, sizes.context),
        )
        for _ in range(count)
    ]
    return [Example(source="", objective="", prefix=prefix, texts=[], seq2seq=True) for prefix in prefixes]


def make_model(sizes: Sizes) -> DimvlModel:
    """Make a random model whose next words differ enough that rounding changes none of them."""
    torch.manual_seed(0)
    model = DimvlModel(**sizes.arguments, vocabulary=sizes.vocabulary, word_head=True).eval()
    part_modalities(model)
    with torch.no_grad():
        model.word_head.transform.norm.weight.mul_(4)
    return model


class Variants:
    """The models, and how each captions a batch of prefixes or image embeddings."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        self.model, self.blip = make_model(sizes).to(self.device), make_blip(sizes).to(self.device)
        self.projections = [Projections(block) for block in self.model.encoder.layers]
        self.packed_blip = copy.deepcopy(self.blip)
        for module in (self.model, self.packed_blip, *self.projections):
            pack_linears(module)

    def search(self, words: NextWords, lengths: Tensor, beams: int, every_step: bool = False) -> list[list[Hypothesis]]:
        """Search for one caption of each image."""
        options = DecodingOptions(beams=beams, max_tokens=self.sizes.steps)
        all_ranks = (lambda _: False) if every_step else bool
        return beam_search(Ending(words, lengths), TOKENIZER.sep, options, all_ranks, wanted=1)

    def batch(self, prefixes: list[Example]) -> Batch:
        """Collate prefixes."""
        sizes = self.sizes
        shape = BatchShape(objectives={}, text_start=sizes.context, feature_width=sizes.feature_width)
        return collate(prefixes, shape).to(self.device)

    def prefix(self, prefixes: list[Example]) -> CachedDecoder:
        """Compute keys and values of prefixes."""
        return CachedDecoder(self.model, self.sizes.processor, self.batch(prefixes))

    def ours(self, prefixes: list[Example], lengths: Tensor, beams: int) -> Any:
        """Caption as a Predictor does."""
        return self.search(self.prefix(prefixes), lengths, beams)

    def vlp(self, prefixes: list[Example], lengths: Tensor, beams: int) -> Any:
        """Caption by VLP's policy."""
        words = HiddenStateCache(self.model, self.projections, self.sizes, self.batch(prefixes))
        return self.search(words, lengths, beams, every_step=True)

    def generate(self, images: Tensor, lengths: Tensor, beams: int, packed: bool) -> Tensor:
        """(B, P, D) image embeddings -> BLIP's token ids (B, at most 1 + steps)."""

        def end(ids: Tensor, scores: Tensor) -> Tensor:
            return end_texts(scores, lengths.repeat_interleave(len(ids) // len(lengths)) <= ids.shape[1])

        return (self.packed_blip if packed else self.blip).generate(
            input_ids=torch.full((len(images), 1), TOKENIZER.cls, device=self.device),
            encoder_hidden_states=images,
            num_beams=beams,
            max_new_tokens=self.sizes.steps,
            do_sample=False,
            logits_processor=[end],
        )

    def images(self, count: int) -> Tensor:
        """Random image embeddings for BLIP, with as many rows as our prefix: (B, P, D)."""
        generator = torch.Generator().manual_seed(0)
        rows = self.sizes.regions + self.sizes.context
        return torch.randn(count, rows, self.sizes.width, generator=generator).to(self.device)


def check(variants: Variants) -> dict[str, Any]:
    """Compare our captions with those of VLP's policy; BLIP must take as many steps.

    Raises:
        SystemExit: captions of the best hypotheses or their log-probabilities differ, or numbers of steps do.

    """
    sizes = variants.sizes
    prefixes = make_prefixes(sizes, sizes.checked)
    found: dict[str, Any] = {}
    for name, lengths in endings(sizes, sizes.checked).items():
        lengths = lengths.to(variants.device)
        wanted = variants.ours(prefixes, lengths, sizes.beams)
        pairs = list(zip(wanted, variants.vlp(prefixes, lengths, sizes.beams), strict=True))
        if any(ours[0].token_ids != theirs[0].token_ids for ours, theirs in pairs):
            raise SystemExit(f"VLP's policy: a caption differs from ours with {name} lengths")
        difference = max(abs(ours[0].log_probability - theirs[0].log_probability) for ours, theirs in pairs)
        if not difference < 1e-3:
            raise SystemExit(f"VLP's policy: a log-probability differs from ours by {difference} with {name} lengths")
        found[name] = {"captions": len(pairs), "largest_difference": float(f"{difference:.1e}")}
        given_lengths = [len(hypotheses[0].token_ids) + 1 for hypotheses in wanted]
        ids = variants.generate(variants.images(sizes.checked), lengths, sizes.beams, packed=False)[:, 1:]
        theirs = [row.index(TOKENIZER.sep) + 1 for row in ids.tolist()]
        if not given_lengths == theirs == lengths.tolist():
            raise SystemExit(f"lengths differ: ours {given_lengths}, BLIP {theirs}, expected {lengths.tolist()}")
    return found


def endings(sizes: Sizes, count: int) -> dict[str, Tensor]:
    """Where the texts of each image end: (B,) each."""
    drawn = np.random.default_rng(1).normal(*LENGTHS, count).round().clip(min(6, sizes.steps), sizes.steps)
    return {"fixed": torch.full((count,), sizes.steps), "drawn": torch.from_numpy(drawn.astype(np.int64))}


def ways(variants: Variants, lengths: Tensor, beams: int) -> dict[str, Callable[[], Any]]:
    """Ways to caption a batch of images whose texts end at these lengths (B,)."""
    lengths = lengths.to(variants.device)
    prefixes, images = make_prefixes(variants.sizes, len(lengths)), variants.images(len(lengths))
    return {
        OURS: lambda: variants.ours(prefixes, lengths, beams),
        "our prefix alone": lambda: variants.prefix(prefixes),
        "VLP's policy, our kernels": lambda: variants.vlp(prefixes, lengths, beams),
        BLIP: lambda: variants.generate(images, lengths, beams, packed=False),
        PACKED_BLIP: lambda: variants.generate(images, lengths, beams, packed=True),
    }


@torch.inference_mode()
def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure beam and greedy search at several batch sizes."""
    sizes = SMALL if small else Sizes()
    variants = Variants(sizes, device)
    facts = {"sizes": asdict(sizes), "checked": check(variants), "batches": {}}
    for beams in (sizes.beams, 1):
        for count in sizes.batches:
            for name, lengths in endings(sizes, count).items():
                if name == "fixed" and (beams == 1 or count == sizes.batches[-1]):
                    continue  # takes an hour and shows nothing new
                seconds = interleaved(ways(variants, lengths, beams), rounds, device)
                found = speeds(seconds, OURS, "captions_per_second", count, 3)
                facts["batches"].setdefault(f"{beams} beams", {}).setdefault(name, {})[str(count)] = found
    return facts
