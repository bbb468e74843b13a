"""Memory of a training step: weights and optimiser states by ZeRO stage, and the activations of a micro-batch.

Bytes on each of N ranks for P parameters, of which T are trained (Rajbhandari et al., "ZeRO", SC 2020, section 3.1, as
DeepSpeed 0.19 implements it: gradients are summed in fp32, and from stage 1 on even fp32 weights have fp32 masters).
Muon keeps one moment instead of two.

                        weights     gradients     optimiser states
    torch and stage 0   4 P         4 T           8 T (two moments); bf16 is autocast there
    stage 1             w P         s T           12 T / N (fp32 masters and two moments)
    stage 2             w P         4 T / N       12 T / N
    stage 3             w P / N     4 T / N       12 T / N

w bytes per weight: 4 in fp32, 2 in bf16. s bytes per gradient at stage 1: 4 in fp32, 6 in bf16, where the fp32 sum is
kept besides the gradients. Buffers of b elements (`reduce_bucket_size`) come on top: 4 bytes per gradient, at most
`BUCKET` of them, at stage 0 and in bf16 at stage 1; w b bytes in fp32 at stage 1 and at stage 2; at stage 3, 4 b bytes
and w bytes for each of at most `GATHERED` gathered weights.

Bytes that a block of N rows keeps for the backward pass, with e bytes per element (fp32 4, otherwise 2), m per entry of
a dropout mask (GPU 1, CPU e, without dropout 0), q querying rows, k key rows (`AttentionWork`) and H heads:

    2 N D e                inputs of two norms, and 4 N e for their means and standard deviations
    2 N D e                inputs of the QKV projection and of the feed-forward sublayer
    2 (q + k) D e + 4 q H  attention's query, output, key and value, and its log-sum-exp
    N D e                  input of the output projection
    2 N I e                input and output of the activation
    2 N D m                two dropout masks

Padded cores also keep their mask in fp32, e bytes per pair; in bf16 on a CPU they keep the attention weights, H e bytes
per pair, instead of output and log-sum-exp. Fused kernels (torch.compile) may keep less.

Letters: N rows, D width, I inner width.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from dimvl.model.encoder import FeedForward
from dimvl.model.flops import gradient_reaches_layers, takes_gradient
from dimvl.model.heads import heads_of
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work
from dimvl.regions.store.format import FeatureDtype, feature_bytes

PIECES = 3
"""Word pieces of a region's names, about."""
SIMILARITY = 4
"""Bytes kept per product of vectors in the shared space, in fp32."""
Arithmetic = Literal["fp32", "autocast", "bf16"]
"""`autocast` is bf16 with the torch engine and at stage 0; `bf16` is bf16 at stages 1 to 3, which cast the model."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The number formats of a run, and what else decides which activations are kept.

    Attributes:
        arithmetic: as `arithmetic_of`.
        gpu: whether it runs on a GPU; on a CPU, entries of dropout masks have the size of the activations.
        dropout: whether dropout is above 0.
        recompute: activation checkpointing, which keeps only the input of each block.

    """

    arithmetic: Arithmetic
    gpu: bool
    dropout: bool
    recompute: bool = False

    @property
    def element(self) -> int:
        """Bytes of an element in matrix products."""
        return 4 if self.arithmetic == "fp32" else 2

    @property
    def embedding(self) -> int:
        """Bytes of an element of the embeddings, which autocast leaves in fp32."""
        return 2 if self.arithmetic == "bf16" else 4

    def mask(self, element: int) -> int:
        """Bytes per entry of a dropout mask, for activations of `element` bytes."""
        return 0 if not self.dropout else 1 if self.gpu else element


BUCKET = 500_000_000
"""Default of DeepSpeed's `reduce_bucket_size` and of its other buckets, in elements."""
GATHERED = 1_000_000_000
"""Maximum number of parameters that stage 3 gathers at once, DeepSpeed's `stage3_max_live_parameters`."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes on one GPU that do not depend on the batch.

    Attributes:
        weights: kept between steps; 0 where they are offloaded to the CPU.
        gradients: gradients of the trained weights.
        optimiser: states, including fp32 master weights; 0 where they are offloaded to the CPU.
        buffers: gradients to reduce, and weights that stage 3 gathers.

    """

    weights: float
    gradients: float
    optimiser: float
    buffers: float


def arithmetic_of(precision: Literal["fp32", "bf16"], stage: int) -> Arithmetic:
    """Return the arithmetic of a precision at a ZeRO stage; the torch engine is like stage 0."""
    if precision == "fp32":
        return "fp32"
    return "bf16" if stage else "autocast"


def torch_state_bytes(parameters: int, trained: int, muon: int) -> StateBytes:
    """Bytes with the torch engine for P parameters, of which T are trained, `muon` of these with one moment."""
    return StateBytes(weights=4 * parameters, gradients=4 * trained, optimiser=8 * trained - 4 * muon, buffers=0)


def zero_state_bytes(
    parameters: int, trained: int, muon: int, *, arithmetic: Arithmetic, stage: int, ranks: int, bucket: int = BUCKET
) -> StateBytes:
    """Bytes with DeepSpeed for P parameters, of which T are trained, `muon` of these (only at stage 0) with one moment.

    Args:
        parameters: P.
        trained: T.
        muon: number of trained parameters with one moment.
        arithmetic: as `arithmetic_of`.
        stage: ZeRO stage, 0 to 3.
        ranks: N.
        bucket: `reduce_bucket_size`, b.

    """
    if stage == 0:
        return replace(torch_state_bytes(parameters, trained, muon), buffers=4 * min(trained, BUCKET))
    half = arithmetic == "bf16"
    weight = 2 if half else 4
    gradients = {1: (6 if half else 4) * trained, 2: 4 * trained / ranks, 3: 4 * trained / ranks}
    buffers = {
        1: 4 * min(trained, BUCKET) if half else weight * bucket,
        2: weight * bucket,
        3: 4 * bucket + weight * min(parameters, GATHERED),
    }
    return StateBytes(
        weights=weight * parameters / (ranks if stage == 3 else 1),
        gradients=gradients[stage],
        optimiser=12 * trained / ranks,
        buffers=buffers[stage],
    )


def saved_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> dict[str, float]:
    """Bytes of the activations that a micro-batch keeps for its backward pass, by part.

    Nothing is kept below the first trained weight. Frozen weights above it are counted as trained ones, although they
    keep less. With autocast, weights whose input needs a gradient are kept as copies in bf16.
    """
    layers, block = sum(gradient_reaches_layers(model)), _block_bytes(model, work, numbers)
    if numbers.recompute:  # the inputs of all blocks, and everything of the one being recomputed
        encoder = layers * work.rows * model.regions.feature.out_features * numbers.element + bool(layers) * block
    else:
        encoder = layers * block
    heads = sum(
        work.heads.get(name, 0.0) * (numbers.element * head.hidden + 4 * head.outputs)
        for name, head in heads_of(model).items()
    )
    heads += SIMILARITY * work.similarities
    embedded = any(weight.requires_grad for part in (model.regions, model.tokens) for weight in part.parameters())
    kept = {"embeddings": embedded * _embedding_bytes(model, work, numbers), "encoder": encoder, "heads": heads}
    if numbers.arithmetic == "autocast":
        linear = (
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and takes_gradient(model, name)
        )
        kept["casts of weights"] = 2.0 * sum(p.numel() for module in linear for p in module.parameters())
    return kept


def batch_bytes(model: DimvlModel, work: Work, feature_dtype: FeatureDtype) -> float:
    """Bytes of a micro-batch: features in the type of the store, fp32 geometry and times, 64-bit ids, targets."""
    times = 4 * (model.regions.time is not None)
    words = (8 + PIECES * (8 + 4)) * (model.regions.words is not None)
    region = feature_bytes(model.regions.feature.in_features, feature_dtype) + 4 * 7 + times + words + 8 + 1
    targets = sum((8 + head.label_bytes) * work.heads.get(name, 0.0) for name, head in heads_of(model).items())
    return region * work.vision + 24 * work.language + targets


def temporary_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    """Bytes of the largest temporary.

    It is the gradient of the word logits (with a copy in bf16) between forward and backward pass, or the two gradients
    around the activation of a block.
    """
    element = numbers.element
    logits = work.heads.get("word_head", 0.0) * model.tokens.word.num_embeddings * (4 if element == 4 else 4 + element)
    return max(logits, 2 * work.rows * _inner_width(model) * element)


def _inner_width(model: DimvlModel) -> int:
    return next(module.inner.out_features for module in model.modules() if isinstance(module, FeedForward))


def _block_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    width, inner = model.regions.feature.out_features, _inner_width(model)
    element, attention = numbers.element, work.attention
    rows = 2 * width * element + 4 * element  # norms
    rows += 3 * width * element + 2 * inner * element  # products
    rows += 2 * width * numbers.mask(element)
    if not numbers.gpu and element == 2:  # attention is computed by plain products
        attended = (attention.queries + 2 * attention.keys) * width * element
        attended += attention.pairs * model.encoder.heads * element
    else:
        attended = 2 * (attention.queries + attention.keys) * width * element
        attended += 4 * attention.queries * model.encoder.heads
        attended += attention.masked * element if numbers.arithmetic == "fp32" else 0
    return work.rows * rows + attended


def _embedding_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    width, features = model.regions.feature.out_features, model.regions.feature.in_features
    element, embedding = numbers.element, numbers.embedding
    stream = embedding + numbers.mask(embedding)
    vision = features * element + 7 * element * (element == 2) + width * (2 * element + stream)
    vision += 0 if model.regions.time is None else model.regions.time.in_features * element
    if model.regions.words is not None:  # inputs of projection and norm; words with weights, in the type of the weights
        vision += width * 2 * element + 3 * embedding + 1 + 8 * PIECES
    return work.vision * (vision + 6 * embedding) + work.language * (width * stream + 2 * embedding)
