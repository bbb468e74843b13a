"""Memory of a training step: what the weights take by ZeRO stage, and what a micro-batch keeps for its backward pass.

Bytes of P parameters, of which T are trained, on each of N ranks (Rajbhandari et al., "ZeRO", SC 2020, section 3.1,
with what DeepSpeed 0.19 makes of it: gradients are summed in fp32, and from stage 1 on there are fp32 masters even of
fp32 weights). Muon keeps one moment instead of two.

                        weights     gradients     optimizer states
    torch and stage 0   4 P         4 T           8 T (two moments); bf16 is autocast there
    stage 1             w P         s T           12 T / N (fp32 masters and two moments)
    stage 2             w P         4 T / N       12 T / N
    stage 3             w P / N     4 T / N       12 T / N

Weights have w bytes, in fp32 4 and in bf16 2; stage 1 holds gradients of s bytes, in fp32 4 and in bf16 6, since the
sum stands beside what backward gives. Beside that stand buffers, of b elements (`reduce_bucket_size`) or as many as
there are: at stage 0, and at stage 1 in bf16, 4 bytes of gradients laid end to end; at stage 1 in fp32 and at stage 2,
w bytes; at stage 3, 4 bytes and whole weights that are gathered for use, w bytes of at most `GATHERED`.

Bytes that a block keeps, with e bytes of an element (fp32 4, else 2), m of a dropout mask (GPU 1, processor e, without
dropout 0), q attending rows and k rows that are gathered to be attended to (for a prefix shared by texts once per
text), H heads:

    2 N D e  inputs of two norms, and 4 N e their means and deviations
    2 N D e  inputs of the projections to query, key, value and into the feed-forward
    2 (q + k) D e + 4 q H  query, output, key and value of attention, and its log-sum-exp
    N D e    input of the output projection
    2 N I e  input and output of the activation
    2 N D m  two dropout masks

The padded cores also keep their mask (fp32), as e bytes a pair, or (bf16 on a processor) the weights of attention, H e
bytes a pair, in the place of output and log-sum-exp. Heads keep 4 bytes per word and vocabulary
entry. A fused kernel (torch.compile) may keep less.

Letters: N rows, D width, I inner width, F region feature, V vocabulary, K classes, A answers, M targets.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from dimvl.model.encoder import FeedForward
from dimvl.model.heads import heads_of
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work
from dimvl.regions.store.format import FeatureDtype, feature_bytes

Arithmetic = Literal["fp32", "autocast", "bf16"]
"""`autocast` is bf16 of the torch engine and of stage 0; `bf16` that of stages 1 to 3, which cast the model."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How numbers are kept.

    Attributes:
        arithmetic: of the engine.
        gpu: else a processor, whose dropout keeps a mask of whole numbers.
        dropout: whether there is any.
        recompute: activation checkpointing: of each block its input alone is kept.

    """

    arithmetic: Arithmetic
    gpu: bool
    dropout: bool
    recompute: bool = False

    @property
    def element(self) -> int:
        """Bytes of what products take."""
        return 4 if self.arithmetic == "fp32" else 2

    @property
    def embedding(self) -> int:
        """Bytes of an element of embeddings, which autocast leaves in fp32."""
        return 2 if self.arithmetic == "bf16" else 4

    def mask(self, element: int) -> int:
        """Bytes of an entry of a dropout mask over elements of so many bytes."""
        return 0 if not self.dropout else 1 if self.gpu else element


BUCKET = 500_000_000
"""Elements of DeepSpeed's `reduce_bucket_size` and of its other buckets, where nothing else is set."""
GATHERED = 1_000_000_000
"""Parameters that stage 3 keeps whole at most, DeepSpeed's `stage3_max_live_parameters`."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes on one GPU that do not depend on the batch."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float


def arithmetic_of(precision: Literal["fp32", "bf16"], stage: int) -> Arithmetic:
    """How a precision is had at a stage of ZeRO; the torch engine is as stage 0."""
    if precision == "fp32":
        return "fp32"
    return "bf16" if stage else "autocast"


def torch_state_bytes(parameters: int, trained: int, muon: int) -> StateBytes:
    """Bytes under the torch engine; the module's docstring has the table.

    Args:
        parameters: P.
        trained: T, of these.
        muon: of these, those with one moment.

    """
    return StateBytes(weights=4 * parameters, gradients=4 * trained, optimizer=8 * trained - 4 * muon, buffers=0)


def zero_state_bytes(
    parameters: int, trained: int, muon: int, *, arithmetic: Arithmetic, stage: int, ranks: int, bucket: int = BUCKET
) -> StateBytes:
    """Bytes under DeepSpeed; the module's docstring has the table.

    Args:
        parameters: P.
        trained: T, of these.
        muon: of these, those with one moment; only at stage 0.
        arithmetic: see `arithmetic_of`.
        stage: of ZeRO, 0 to 3.
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
        optimizer=12 * trained / ranks,
        buffers=buffers[stage],
    )


def saved_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> dict[str, float]:
    """Bytes of activations at the end of a forward pass, by part: what is kept for the backward pass.

    Args:
        model: on any device; all of it learns (what is frozen keeps less, which is not counted).
        work: of the micro-batch.
        numbers: how numbers are kept.

    """
    layers, block = len(model.encoder.layers), _block_bytes(model, work, numbers)
    if numbers.recompute:
        block, again = work.rows * model.regions.feature.out_features * numbers.element, block
    else:
        again = 0.0
    kept = {"embeddings": _embedding_bytes(model, work, numbers), "encoder": layers * block + again}
    kept["heads"] = _head_bytes(model, work, numbers)
    if numbers.arithmetic == "autocast":
        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        kept["casts of weights"] = 2.0 * sum(p.numel() for module in linear for p in module.parameters())
    return kept


def batch_bytes(model: DimvlModel, work: Work, feature_dtype: FeatureDtype) -> float:
    """Bytes of the micro-batch itself, as it comes: features, fp32 geometry, 64-bit ids, targets.

    Args:
        model: on any device.
        work: of the micro-batch.
        feature_dtype: as the store keeps features.

    """
    region = feature_bytes(model.regions.feature.in_features, feature_dtype) + 4 * 7 + 8 + 1
    targets = sum((8 + head.label_bytes) * work.heads.get(name, 0.0) for name, head in heads_of(model).items())
    return region * work.vision + 24 * work.language + targets


def passing_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    """Bytes of the largest thing that comes and goes beside what is kept.

    Either the logits of words and their gradient at the turn from forward to backward, or, in a block, the gradients of
    the activation's two sides.
    """
    element, inner = numbers.element, inner_width(model)
    logits = (
        work.heads.get("word_head", 0.0) * model.tokens.word.num_embeddings * (4 + (element if element == 2 else 0))
    )
    return max(logits, 2 * work.rows * inner * element)


def inner_width(model: DimvlModel) -> int:
    """Width inside the feed-forward sublayers, I."""
    return next(module.inner.out_features for module in model.modules() if isinstance(module, FeedForward))


def _block_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    width = model.regions.feature.out_features
    inner = inner_width(model)
    element, attention = numbers.element, work.attention
    rows = 2 * width * element + 4 * element  # norms
    rows += 3 * width * element + 2 * inner * element  # products
    rows += 2 * width * numbers.mask(element)
    if not numbers.gpu and element == 2:  # by plain products
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
    return work.vision * (vision + 6 * embedding) + work.language * (width * stream + 2 * embedding)


def _head_bytes(model: DimvlModel, work: Work, numbers: Numbers) -> float:
    return sum(
        work.heads.get(name, 0.0) * (head.hidden_bytes(numbers.element) + 4 * head.outputs)
        for name, head in heads_of(model).items()
    )
