"""Captioning: the same stack under the sequence-to-sequence mask, with no separate decoder."""

from types import MappingProxyType

import numpy as np
from torch import Tensor

from dimvl.config import Seq2seqConfig
from dimvl.data.batch import Batch, WordTargets
from dimvl.data.documents import Document, ImageReader, keyed_generator
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.objectives import word_loss
from dimvl.tasks.base import Task, seq2seq_text

OBJECTIVE = "captions"


class CaptionTask(Task):
    """Cross entropy of the next word, with label smoothing."""

    name = "caption"
    objectives = MappingProxyType({OBJECTIVE: WordTargets})
    weights = MappingProxyType({OBJECTIVE: 1.0})

    def __init__(self, model: DimvlModel, processor: Processor, smoothing: float) -> None:
        super().__init__(model, processor)
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, WordTargets) and self.model.word_head is not None
        logits = self.model.word_head(self.model(batch)[targets.rows])
        return {OBJECTIVE: word_loss(logits, targets.labels, self.smoothing)}


class CaptionSource:
    """One document per image and epoch, with up to k captions behind one prefix, drawn by seed, epoch and image.

    Args:
        captions: tokenised captions, grouped by image.
        images: reads the region store.
        seq2seq: variant, share of masked tokens and captions per prefix.
        tokenizer: the model's tokenizer.
        seed: of the run.

    """

    def __init__(
        self, captions: TextStore, images: ImageReader, seq2seq: Seq2seqConfig, tokenizer: Tokenizer, seed: int
    ) -> None:
        self.captions, self.images, self.seq2seq = captions, images, seq2seq
        self.tokenizer, self.seed = tokenizer, seed
        self.positions = images.store.positions([image_id.decode() for image_id in captions.image_ids])
        self._shared = shared_rows(captions, seq2seq.captions)

    def __len__(self) -> int:
        return len(self.positions)

    def costs(self, epoch: int) -> np.ndarray:
        """(D,) upper bound of rows."""
        return self.images.rows(self.positions) + self._shared

    def build(self, epoch: int, index: int) -> Document:
        """Build the document of an image in an epoch."""
        generator = keyed_generator(self.seed, "document", epoch, index)
        return caption_document(
            self.captions,
            self.images,
            index,
            int(self.positions[index]),
            self.seq2seq,
            self.tokenizer,
            generator,
            OBJECTIVE,
        )


def shared_rows(captions: TextStore, most: int) -> np.ndarray:
    """Upper bound of the rows of up to `most` captions of each image, [CLS] or [SEP] included: (G,)."""
    lengths, starts = captions.lengths() + 1, captions.groups[:-1]
    longest = np.maximum.reduceat(lengths, starts)
    return np.minimum(np.add.reduceat(lengths, starts), longest * most)


def caption_document(
    captions: TextStore,
    images: ImageReader,
    group: int,
    position: int,
    seq2seq: Seq2seqConfig,
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    objective: str,
) -> Document:
    """Up to k captions of one image behind one prefix.

    Args:
        captions: tokenised captions, grouped by image.
        images: reads the region store.
        group: the image in `captions`.
        position: the image in the store.
        seq2seq: variant, share and k.
        tokenizer: the model's tokenizer.
        generator: keyed by the document.
        objective: that the words to predict belong to.

    """
    first, end = captions.groups[group : group + 2]
    chosen = np.sort(generator.permutation(np.arange(first, end))[: seq2seq.captions])
    texts = [
        seq2seq_text(captions.tokens(text).astype(np.int64), generator, tokenizer, seq2seq.variant, seq2seq.share)
        for text in chosen
    ]
    prefix = images.prefix(images.read(position))
    source = f"image {captions.image_ids[group].decode()}"
    return Document(source=source, objective=objective, prefix=prefix, texts=texts, seq2seq=True)
