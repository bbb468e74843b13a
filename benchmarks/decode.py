"""Captions by beam search: ours, VLP's decoding policy on the same weights, and BLIP's text decoder under `generate`.

VLP's policy (Zhou et al., AAAI 2020) keeps hidden states instead of keys and values and projects the whole history
anew in every step, copies the prefix for each beam, and always takes all steps. It is written here over the same model,
with one row a step as ours, so its captions must be equal. BLIP's decoder (transformers) has random weights of the same
width and layers, and gets image embeddings of as many rows as our prefix. What would compute them is left out of its
times, while ours hold the prefix; "our prefix alone" tells how much that is.

"fixed": no text may end before the last step, so all variants take equally many. "drawn": each image's texts end at a
length of its own, whatever their words; VLP's policy goes on to the last step.

The kernels are those of a Predictor (linear layers laid out by oneDNN) for ours and for VLP's policy; for BLIP both
those of torch, as it comes, and the same as ours. What is quicker by `torch.compile` of each layer with dynamic lengths
(for ours of what follows attention), measured with two layers before, is compiled. The static cache of transformers,
which it compiles itself, is not for this decoder: words and image come into the same one, which is too short for both.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compiled import Compiled, Trial, try_compiled
from benchmarks.decoders import TOKENIZER, HiddenStateCache, Projections, Sizes, WithoutCache, lay_out, make_blip
from benchmarks.harness import interleaved, ratio
from benchmarks.sizes import part_modalities
from dimvl.cpu.packed import pack_linears
from dimvl.data.examples import Prefix
from dimvl.decoding import CachedDecoder, DecodingOptions, Hypothesis, NextWords, beam_search
from dimvl.model.model import DimvlModel

OURS, PLAIN, BLIP, PACKED_BLIP = "ours", "ours, weights not laid out", "BLIP's decoder", "BLIP's decoder, our kernels"
LENGTHS = (11.6, 2.3)
"""Mean and deviation of drawn lengths, a sentence of ten or eleven words and [SEP]; clipped to 6 and the longest."""
SMALL = Sizes(
    layers=2, width=32, heads=4, inner_width=64, vocabulary=300, regions=10, feature_width=16, steps=6, beams=3,
    batches=(1, 3), checked=3,
)  # fmt: skip


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
    model = DimvlModel(**sizes.arguments, vocabulary=sizes.vocabulary, word_head=True).eval()
    part_modalities(model)
    with torch.no_grad():
        model.word_head.transform.norm.weight.mul_(4)
    return model


class Variants:
    """The models, and how each captions a batch."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        plain = make_model(sizes).to(self.device)
        self.projections = [Projections(block) for block in plain.encoder.layers]
        self.packed, self.blip = copy.deepcopy(plain), make_blip(sizes).to(self.device)
        self.plain, self.packed_blip = plain, copy.deepcopy(self.blip)
        for module in (self.packed, self.packed_blip, *self.projections):
            pack_linears(module)

    def search(self, words: NextWords, lengths: Tensor, beams: int, every_step: bool = False) -> list[list[Hypothesis]]:
        """Search for one caption of each image."""
        options = DecodingOptions(beams=beams, max_tokens=self.sizes.steps)
        all_ranks = (lambda _: False) if every_step else bool
        return beam_search(Ending(words, lengths), TOKENIZER.sep, options, all_ranks, wanted=1)

    def ours(self, prefixes: list[Prefix], lengths: Tensor, beams: int, plain: bool = False) -> Any:
        """As a Predictor does, or with plain weights."""
        batch = lay_out(self.sizes, prefixes).to(self.device)
        model = self.plain if plain else self.packed
        return self.search(CachedDecoder(model, self.sizes.processor, batch), lengths, beams)

    def prefix(self, prefixes: list[Prefix]) -> CachedDecoder:
        """Compute keys and values of prefixes and nothing else."""
        return CachedDecoder(self.packed, self.sizes.processor, lay_out(self.sizes, prefixes).to(self.device))

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

    def compile(self, name: str) -> None:
        """Compile what the layers of a variant do."""
        if name in (OURS, PLAIN):
            (self.packed if name == OURS else self.plain).encoder.compile_blocks()
            return
        torch._dynamo.config.recompile_limit = 256  # a layer of BLIP knows its number, so each is compiled for itself
        for layer in (self.packed_blip if name == PACKED_BLIP else self.blip).bert.encoder.layer:
            layer.compile(dynamic=True)


def check(variants: Variants) -> dict[str, Any]:
    """Compare captions of all variants of ours and of VLP's policy; BLIP must take as many steps.

    Raises:
        SystemExit: captions of the best hypotheses or their log-probabilities differ, or numbers of steps do.

    """
    sizes = variants.sizes
    prefixes = make_prefixes(sizes, sizes.checked)
    found: dict[str, Any] = {}
    for name, lengths in endings(sizes, sizes.checked).items():
        lengths = lengths.to(variants.device)
        wanted = variants.ours(prefixes, lengths, sizes.beams)
        others = {
            "weights not laid out": variants.ours(prefixes, lengths, sizes.beams, plain=True),
            "VLP's policy": variants.vlp(prefixes, lengths, sizes.beams),
            "no cache": variants.without_cache(prefixes, lengths, sizes.beams),
        }
        for other, given in others.items():
            pairs = list(zip(wanted, given, strict=True))
            if any(ours[0].token_ids != theirs[0].token_ids for ours, theirs in pairs):
                raise SystemExit(f"{other}: a caption differs from ours with {name} lengths")
            difference = max(abs(ours[0].log_probability - theirs[0].log_probability) for ours, theirs in pairs)
            if not difference < 1e-3:
                raise SystemExit(f"{other}: a log-probability differs from ours by {difference} with {name} lengths")
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


def ways(variants: Variants, lengths: Tensor, beams: int) -> dict[str, Callable[[], Any]]:
    """Ways to caption a batch of images whose texts end at these lengths (B,)."""
    sizes, count, lengths = variants.sizes, len(lengths), lengths.to(variants.device)
    prefixes, generator = make_prefixes(sizes, count), torch.Generator().manual_seed(0)
    images = torch.randn(count, sizes.regions + sizes.context, sizes.width, generator=generator).to(variants.device)
    found: dict[str, Callable[[], Any]] = {
        OURS: lambda: variants.ours(prefixes, lengths, beams),
        "our prefix alone": lambda: variants.prefix(prefixes),
        PLAIN: lambda: variants.ours(prefixes, lengths, beams, plain=True),
        "VLP's policy, our kernels": lambda: variants.vlp(prefixes, lengths, beams),
        BLIP: lambda: variants.generate(images, lengths, beams, packed=False),
        PACKED_BLIP: lambda: variants.generate(images, lengths, beams, packed=True),
    }
    if count == 1:
        found["ours without cache"] = lambda: variants.without_cache(prefixes, lengths, beams)
    return found


def choose_settings(sizes: Sizes, device: str, rounds: int) -> Compiled:
    """Try `torch.compile` with two layers: captions of the two smaller batches, lengths drawn.

    Raises:
        ValueError: captions differ when a variant is compiled.

    """
    sizes = replace(sizes, layers=2)
    plain, other = (Variants(sizes, device) for _ in range(2))
    batches = [endings(sizes, count)["drawn"] for count in sizes.batches[:2]]

    def trial(name: str) -> Trial:
        runs = [[ways(each, lengths, sizes.beams)[name] for lengths in batches] for each in (plain, other)]

        def captions(which: int) -> list[Any]:
            return [run() for run in runs[which]]

        def compile_other() -> None:
            other.compile(name)
            captions(1)

        def check() -> None:
            if tokens(captions(0)) != tokens(captions(1)):
                raise ValueError(f"{name}: captions differ when it is compiled")

        return Trial(plain=lambda: captions(0), compile=compile_other, compiled=lambda: captions(1), check=check)

    return try_compiled({name: trial(name) for name in (OURS, PLAIN, BLIP, PACKED_BLIP)}, rounds, device)


def tokens(captions: list[Any]) -> list[Any]:
    """Token ids of batches of captions, as ours and as BLIP's `generate` give them."""
    return [
        batch.tolist() if isinstance(batch, Tensor) else [best[0].token_ids for best in batch] for batch in captions
    ]


def measure(variants: Variants, lengths: Tensor, beams: int, rounds: int) -> dict[str, Any]:
    """Time of a batch by each variant."""
    seconds = interleaved(ways(variants, lengths, beams), rounds, variants.device.type)
    return {
        name: {
            "captions_per_second": round(len(lengths) / float(np.median(spent)), 3),
            "times_slower": ratio(spent, seconds[OURS]),
        }
        for name, spent in seconds.items()
    }


@torch.inference_mode()
def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure beams and greedy search at several batch sizes."""
    sizes = SMALL if small else Sizes()
    settings = Compiled() if small else choose_settings(sizes, device, rounds)
    variants = Variants(sizes, device)
    for name in filter(settings.compiles, settings.compiled_over_eager):
        variants.compile(name)
    facts = {"sizes": asdict(sizes), "settings": asdict(settings), "checked": check(variants), "batches": {}}
    for beams in (sizes.beams, 1):
        for count in sizes.batches:
            for name, lengths in endings(sizes, count).items():
                if name == "fixed" and (beams == 1 or count == sizes.batches[-1]):
                    continue  # an hour of its own, and no other story
                found = measure(variants, lengths, beams, rounds)
                facts["batches"].setdefault(f"{beams} beams", {}).setdefault(name, {})[str(count)] = found
    return facts
