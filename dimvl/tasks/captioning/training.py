"""Training of captioning: the same stack under the sequence-to-sequence mask, without a separate decoder."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import Example, keyed_generator
from dimvl.data.prefixes import ImageReader, Prefix
from dimvl.data.processor import Processor
from dimvl.data.targets import CaptionTargets, DropWorst, TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.objectives import word_loss
from dimvl.regions.records import Detections
from dimvl.tasks.base import ImageSource, TaskModule, seq2seq_text, shared_rows
from dimvl.tasks.captioning.config import DropWorstConfig, Seq2seqConfig

OBJECTIVE = "captions"


class CaptionModule(TaskModule):
    """Cross entropy of the next word, with label smoothing; the worst captions of an image may be dropped."""

    objectives = MappingProxyType({OBJECTIVE: TargetSpec(CaptionTargets)})
    weights = MappingProxyType({OBJECTIVE: 1.0})

    def __init__(self, model: DimvlModel, processor: Processor, smoothing: float) -> None:
        super().__init__(model, processor)
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, CaptionTargets) and self.model.word_head is not None
        logits = self.model.word_head(self.model(batch)[targets.rows])
        if not targets.drop.any():
            return {OBJECTIVE: word_loss(logits, targets.labels, self.smoothing)}
        losses = F.cross_entropy(logits.float(), targets.labels, reduction="none", label_smoothing=self.smoothing)
        kept = kept_texts(losses.detach(), targets, batch.layout.text_prefix)
        return {OBJECTIVE: losses[kept[targets.texts]].sum()}


def kept_texts(losses: Tensor, targets: CaptionTargets, text_prefix: np.ndarray) -> Tensor:
    """Return which texts are kept when the worst of each prefix are dropped: (T,) bool.

    VLP ranks the captions of a batch by their summed loss and divides by the words of the kept ones, so the result
    depends on the rest of the batch. Here the captions of an image are ranked only against each other, by loss per
    word, so hard images and long captions are not preferred, and the loss is divided by the number of all words, which
    is known beforehand. Micro-batches and ranks therefore change nothing.

    Args:
        losses: (M,) loss of each word.
        targets: text of each word, and number of texts to drop per prefix.
        text_prefix: (T,) prefix of each text.

    """
    texts = targets.texts.cpu().numpy()
    words = np.bincount(texts, minlength=len(text_prefix))
    mean = np.bincount(texts, losses.double().cpu().numpy(), len(text_prefix)) / np.maximum(words, 1)
    worst_first = np.lexsort((-mean, text_prefix))
    rank = np.empty(len(text_prefix), dtype=np.int64)
    first = np.searchsorted(text_prefix, text_prefix[worst_first])  # first text of the prefix; prefixes are ascending
    rank[worst_first] = np.arange(len(text_prefix)) - first
    return torch.from_numpy(rank >= targets.drop.cpu().numpy()[text_prefix]).to(targets.texts.device)


class CaptionSource(ImageSource):
    """One example per image and epoch, with up to k captions behind one prefix, drawn by seed, epoch and image.

    Args:
        captions: tokenised captions, grouped by image.
        images: reads the region store.
        seq2seq: variant, share of masked tokens and captions per prefix.
        tokenizer: the model's tokenizer.
        seed: seed of the run.
        drop_worst: number of captions of an image to drop, and the first epoch; None drops none.

    """

    def __init__(
        self,
        captions: TextStore,
        images: ImageReader,
        seq2seq: Seq2seqConfig,
        tokenizer: Tokenizer,
        seed: int,
        drop_worst: DropWorstConfig | None = None,
    ) -> None:
        super().__init__(captions, images)
        self.seq2seq, self.tokenizer, self.seed, self.drop_worst = seq2seq, tokenizer, seed, drop_worst

    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples."""
        return self.prefix_rows(epoch, span) + shared_rows(self.texts, self.seq2seq.captions, span)

    def build_from(self, regions: Detections, epoch: int, index: int) -> Example:
        """Build the example of an image in an epoch."""
        generator = keyed_generator(self.seed, "document", epoch, index)
        prefix = self.images.prefix(regions)
        example = caption_example(self.texts, index, prefix, self.seq2seq, self.tokenizer, generator, OBJECTIVE)
        if self.drop_worst is None or epoch < self.drop_worst.after:
            return example
        return replace(example, target=DropWorst(self.drop_worst.count(len(example.texts))))


def caption_example(
    captions: TextStore,
    group: int,
    prefix: Prefix,
    seq2seq: Seq2seqConfig,
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    objective: str,
) -> Example:
    """Build an example of up to k captions of one image behind one prefix.

    Args:
        captions: tokenised captions, grouped by image.
        group: index of the image in `captions`.
        prefix: prefix of the image.
        seq2seq: variant, share of masked tokens, and k.
        tokenizer: the model's tokenizer.
        generator: keyed by the example.
        objective: name of the objective.

    """
    first, end = captions.groups[group : group + 2]
    chosen = np.sort(generator.permutation(np.arange(first, end))[: seq2seq.captions])
    texts = [
        seq2seq_text(captions.tokens(text), generator, tokenizer, seq2seq.variant, seq2seq.share) for text in chosen
    ]
    source = captions.describe(group)
    return Example(source=source, objective=objective, prefix=prefix, texts=texts, seq2seq=True)
