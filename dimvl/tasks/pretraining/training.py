"""Pretraining: masked LM, sequence-to-sequence LM, masked object prediction, matching and contrastive alignment.

DiMBERT is pretrained with the two language models; the other objectives are additions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from dimvl.data.align_targets import AlignTargets
from dimvl.data.batch import Batch
from dimvl.data.examples import Example, KeyedUniform, keyed_generator
from dimvl.data.prefixes import ImageReader, PrefixRegions
from dimvl.data.processor import Processor
from dimvl.data.targets import (
    HiddenObjects,
    Matches,
    MatchTargets,
    ObjectTargets,
    TargetSpec,
    WordTargets,
)
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.files import read_json
from dimvl.model.heads import Aligned, heads_of
from dimvl.model.model import DimvlModel
from dimvl.objectives import (
    WordChanges,
    class_distribution,
    contrastive_losses,
    hide_regions,
    match_loss,
    object_class_loss,
    object_feature_loss,
    word_loss,
)
from dimvl.regions.records import Detections
from dimvl.tasks.base import ImageSource, TaskModule, masked_text, plain_text, shared_rows
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.training import caption_example
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.groups import Groups
from dimvl.tasks.pretraining.hard_negatives import HardNegatives

DRAWS = 10
"""Texts drawn for a negative before the pair stays a match."""


def target_specs(classes: int) -> dict[str, TargetSpec]:
    """Return the targets of all objectives, for K classes of the extractor."""
    return {
        "masked_lm": TargetSpec(WordTargets),
        "seq2seq_lm": TargetSpec(WordTargets),
        "masked_object": TargetSpec(ObjectTargets, classes + 1),
        "matching": TargetSpec(MatchTargets),
        "contrastive": TargetSpec(AlignTargets),
    }


class PretrainModule(TaskModule):
    """The objectives over one encoder, as far as the model has their heads."""

    def __init__(self, model: DimvlModel, processor: Processor, config: ObjectivesConfig) -> None:
        super().__init__(model, processor)
        heads, every = heads_of(model), target_specs(len(processor.extractor.classes))
        self.objectives = {name: spec for name, spec in every.items() if spec.kind.head in heads}
        weights = config.weights
        self.weights = {
            "masked_lm": weights.masked_lm,
            "seq2seq_lm": weights.seq2seq_lm,
            "masked_object/class": weights.object_class,
            "masked_object/feature": weights.object_feature,
            "matching": weights.matching,
            "contrastive/global": config.contrastive.global_weight,
            "contrastive/tokens": config.contrastive.tokens_weight,
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        return self.losses(batch, self.model(batch))

    def losses(self, batch: Batch, rows: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch from its encoded rows (N, D)."""
        losses: dict[str, Tensor] = {}
        for name, targets in batch.targets.items():
            if isinstance(targets, WordTargets):
                losses[name] = self._word_loss(targets, rows)
            elif isinstance(targets, ObjectTargets):
                losses[f"{name}/class"], losses[f"{name}/feature"] = self._object_losses(targets, batch, rows)
            elif isinstance(targets, MatchTargets):
                losses[name] = self._match_loss(targets, rows)
            elif isinstance(targets, AlignTargets):
                losses[f"{name}/global"], losses[f"{name}/tokens"] = self._contrastive_losses(targets, rows)
        return losses

    def _word_loss(self, targets: WordTargets, rows: Tensor) -> Tensor:
        assert self.model.word_head is not None
        return word_loss(self.model.word_head(rows[targets.rows]), targets.labels)

    def _object_losses(self, targets: ObjectTargets, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.model.object_head is not None
        prediction = self.model.object_head(rows[targets.rows])
        features, scales = batch.region_features[targets.rows], batch.region_feature_scales
        features = self.model.regions.standardise(features, None if scales is None else scales[targets.rows])
        return object_class_loss(prediction, targets.class_probabilities), object_feature_loss(prediction, features)

    def _match_loss(self, targets: MatchTargets, rows: Tensor) -> Tensor:
        assert self.model.match_head is not None
        return match_loss(self.model.match_head(rows[targets.rows]), targets.labels)

    def _contrastive_losses(self, targets: AlignTargets, rows: Tensor) -> tuple[Tensor, Tensor]:
        return contrastive_losses(align(self.model, targets, rows), targets)

    def count_correct(self, batch: Batch, rows: Tensor) -> int:
        """Count the pairs of a batch that are classified correctly, from its encoded rows (N, D)."""
        targets = batch.targets["matching"]
        assert isinstance(targets, MatchTargets) and self.model.match_head is not None
        return int(((self.model.match_head(rows[targets.rows]) > 0) == (targets.labels > 0.5)).sum())


def align(model: DimvlModel, targets: AlignTargets, rows: Tensor) -> Aligned:
    """Apply the alignment head to the encoded rows (N, D) of images and texts that were each encoded alone."""
    assert model.align_head is not None
    kinds = (targets.images, targets.regions, targets.texts, targets.words)
    aligned: Aligned = model.align_head(*(rows[kind] for kind in kinds))
    return aligned


class PretrainSource(ImageSource):
    """One example per image and epoch, its objective drawn by share; all draws are keyed by seed, epoch and image.

    A contrastive example is a group of images.

    Args:
        captions: tokenised captions, grouped by image.
        images: reads the region store.
        config: the objectives.
        seq2seq: variant, share of masked tokens and captions per prefix.
        tokenizer: the model's tokenizer.
        seed: seed of the run.
        hard: where a share of the negatives of matching and of the members of groups come from; None for any image.

    Raises:
        UserError: the file of word changes is wrong, or there are fewer images than a contrastive group needs.

    """

    def __init__(
        self,
        captions: TextStore,
        images: ImageReader,
        config: ObjectivesConfig,
        seq2seq: Seq2seqConfig,
        tokenizer: Tokenizer,
        seed: int,
        hard: HardNegatives | None = None,
    ) -> None:
        super().__init__(captions, images)
        self.config, self.seq2seq, self.tokenizer, self.seed, self.hard = config, seq2seq, tokenizer, seed, hard
        pairs = None if config.word_changes is None else read_json(config.word_changes)
        self.word_changes = None if pairs is None else WordChanges(pairs, tokenizer)
        self.shares: Mapping[str, float] = config.shares_of_examples()
        self._matching_texts = seq2seq.captions if config.shared_prefix else 1
        self._longest = captions.longest()
        self._groups: Groups | None = None
        if config.shares.contrastive:
            self._groups = Groups(captions, config.contrastive, seq2seq.captions, tokenizer, seed, hard)
        self._drawn: tuple[int, KeyedUniform] | None = None

    @property
    def enlarging_keys(self) -> Sequence[str]:
        """Keys of the configuration that make an example larger."""
        return super().enlarging_keys if self._groups is None else ["contrastive.group", *super().enlarging_keys]

    def objectives(self, epoch: int, span: slice) -> np.ndarray:
        """Return each example's objective, as an index into the shares, for a span of an epoch's examples."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, KeyedUniform(self.seed, "objectives", epoch))
        edges, names = np.cumsum(list(self.shares.values())), list(self.shares)
        chosen = np.searchsorted(edges, self._drawn[1][span] * edges[-1], side="right")
        objects = span.start + np.flatnonzero(chosen == names.index("masked_object"))
        nothing = objects[self.images.num_regions(self.prefix_images(objects)) == 0]
        chosen[nothing - span.start] = names.index("masked_lm")
        return chosen

    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples."""
        names, objectives = list(self.shares), self.objectives(epoch, span)
        lengths, starts = self.texts.lengths_of(span)
        number = np.minimum(np.diff(self.texts.groups[span.start : span.stop + 1]), self._matching_texts)
        text = np.maximum.reduceat(lengths, starts) + 1
        text = np.where(objectives == names.index("matching"), number * (self._longest + 1), text)
        shared = shared_rows(self.texts, self.seq2seq.captions, span)
        text = np.where(objectives == names.index("seq2seq_lm"), shared, text)
        rows = self.prefix_rows(epoch, span, objectives == names.index("masked_object")) + text
        grouped = np.flatnonzero(objectives == names.index("contrastive"))
        if self._groups is not None and len(grouped):
            members = np.concatenate([self._groups.members(epoch, span.start + place) for place in grouped.tolist()])
            each = self.images.rows(self.prefix_images(members)) + self._groups.text_rows(members)
            rows[grouped] = each.reshape(len(grouped), -1).sum(axis=1)
        return rows

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Build examples of an epoch, reading all their images at once; a group gives an example for each image."""
        members = [self._members(epoch, index) for index in indexes.tolist()]
        found = iter(self.read(epoch, np.concatenate([[], *members]).astype(np.int64)))
        examples: list[Example] = []
        for own in members:
            if len(own) == 1:
                examples.append(self.build_from(next(found), epoch, int(own[0])))
            elif self._groups is not None:
                prefixes = [self.images.prefix(next(found)) for _ in own]
                examples += self._groups.examples(epoch, own, prefixes)
        return examples

    def _members(self, epoch: int, index: int) -> np.ndarray:
        """Images (K,) of an example, of which only a contrastive one has several."""
        objective = list(self.shares)[self.objectives(epoch, slice(index, index + 1))[0]]
        if self._groups is None or objective != "contrastive":
            return np.array([index])
        return self._groups.members(epoch, index)

    def build_from(self, regions: PrefixRegions, epoch: int, index: int) -> Example:
        """Build the example of an image in an epoch."""
        objective = list(self.shares)[self.objectives(epoch, slice(index, index + 1))[0]]
        generator = keyed_generator(self.seed, "document", epoch, index)
        builder = {
            "masked_lm": self._masked_lm,
            "seq2seq_lm": self._seq2seq_lm,
            "masked_object": self._masked_object,
            "matching": self._matching,
        }[objective]
        return builder(index, regions, generator)

    def _source(self, index: int) -> str:
        return self.texts.describe(index)

    def _words(self, index: int, generator: np.random.Generator) -> np.ndarray:
        first, end = self.texts.groups[index : index + 2]
        return self.texts.tokens(int(generator.integers(first, end))).astype(np.int64)

    def _masked_lm(self, index: int, regions: Detections, generator: np.random.Generator) -> Example:
        config = self.config
        words = self._words(index, generator)
        text = masked_text(words, generator, self.tokenizer, config.text_share, config.whole_words)
        prefix = self.images.prefix(regions)
        return Example(source=self._source(index), objective="masked_lm", prefix=prefix, texts=[text])

    def _seq2seq_lm(self, index: int, regions: Detections, generator: np.random.Generator) -> Example:
        prefix = self.images.prefix(regions)
        return caption_example(self.texts, index, prefix, self.seq2seq, self.tokenizer, generator, "seq2seq_lm")

    def _masked_object(self, index: int, regions: PrefixRegions, generator: np.random.Generator) -> Example:
        share, max_cover = self.config.region_share, self.config.max_cover
        targets, hidden = hide_regions(regions.boxes, regions.image_index, generator, share, max_cover)
        return Example(
            source=self._source(index),
            objective="masked_object",
            prefix=self.images.prefix(regions, hidden),
            texts=[plain_text(self._words(index, generator), self.tokenizer)],
            target=HiddenObjects(
                targets, class_distribution(regions, targets, len(self.images.store.extractor.classes))
            ),
        )

    def _matching(self, index: int, regions: Detections, generator: np.random.Generator) -> Example:
        """Build an example of one text or, with a shared prefix, of several, each independently a match or not."""
        first, end = self.texts.groups[index : index + 2]
        drawn = generator.permutation(np.arange(first, end))[: self._matching_texts]
        texts, labels = [], []
        for text in drawn:
            words, match = self.texts.tokens(int(text)).astype(np.int64), 1.0
            if generator.random() < self.config.negative_share:
                words, match = self._negative(index, words, generator)
            texts.append(plain_text(words, self.tokenizer))
            labels.append(match)
        return Example(
            source=self._source(index),
            objective="matching",
            prefix=self.images.prefix(regions),
            texts=texts,
            seq2seq=self.config.shared_prefix,
            target=Matches(labels),
        )

    def _negative(self, index: int, words: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return a text of other images, or this one with one word changed, and 0; never a text of these images.

        If texts repeat ("no finding") or groups share an image, another text is drawn; after `DRAWS` failures, as in a
        data set of one image, the text itself and 1 are returned.
        """
        if self.word_changes is not None and generator.random() < self.config.word_change_share:
            changed = self.word_changes.change(words, generator)
            if changed is not None and not self._is_own(index, changed):
                return changed, 0.0
        for _ in range(DRAWS if len(self) > 1 else 0):
            near = None if self.hard is None else self.hard.draw(index, generator)
            other = (index + int(generator.integers(1, len(self)))) % len(self) if near is None else near
            drawn = self._words(other, generator)
            if not self._is_own(index, drawn) and not self.texts.share_images(index, other):
                return drawn, 0.0
        return words, 1.0

    def _is_own(self, index: int, words: np.ndarray) -> bool:
        texts = map(self.texts.tokens, range(*self.texts.groups[index : index + 2]))
        return any(np.array_equal(words, text) for text in texts)
