"""Self-critical training: drawn captions become more or less likely depending on their reward.

Rennie et al. (CVPR 2017) use the reward of the greedy caption as the baseline. Here several captions are drawn per
image, and the baseline of each is the mean reward of the others (Luo, arXiv 2003.09971, who found it better than the
greedy baseline, without its decoding). As the baseline does not depend on the caption itself, the gradient is unbiased.

The reward is CIDEr-D; `retrieval.py` adds one for captions from which their image is found.

Rewards and log-probabilities include the final [SEP] if it was drawn, so a truncated caption earns less than a complete
one. Captions are drawn without gradients from a cached prefix; then their log-probabilities are computed in one ragged
forward pass. Both use the same distribution: without dropout, over the tokens that a text may contain.

The random numbers that decide what is drawn are part of the example, keyed by seed, epoch and example, so micro-batches
and ranks do not change it.

Letters: M drawn captions, L maximum number of tokens of a caption, I images that a caption is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import Example, keyed_generator
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.targets import Draws, SampleTargets, TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.decoding import CachedDecoder, Sample, sample
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.regions.records import Detections
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.retrieval import SelfRetrieval

OBJECTIVE = "self_critical"
REWARD, CIDER, RETRIEVAL = (f"{OBJECTIVE}/{name}" for name in ("reward", "cider", "retrieval"))
TRIES = 10
"""Groups that share an image with the caption's own group, drawn and refused before one of them is accepted."""
Reward = Callable[[Sequence[Sequence[int]], np.ndarray], np.ndarray]


class SelfCriticalModule(TaskModule):
    """Loss of a drawn caption: minus its advantage times its log-probability.

    The mean reward, and its parts if it has two, are logged as losses of weight 0.

    Args:
        model: a model with a word head and without dropout.
        processor: a processor of the causal variant.
        reward: (token ids of M captions, index (M,) of each one's image in the references) -> (M,).
        longest: L, including [SEP].
        retrieval: a second reward, with its weight.

    """

    weights = MappingProxyType({OBJECTIVE: 1.0, REWARD: 0.0, CIDER: 0.0, RETRIEVAL: 0.0})

    def __init__(
        self,
        model: DimvlModel,
        processor: Processor,
        reward: Reward,
        longest: int,
        retrieval: SelfRetrieval | None = None,
    ) -> None:
        super().__init__(model, processor)
        self.reward, self.longest, self.retrieval = reward, longest, retrieval
        self.objectives = {OBJECTIVE: TargetSpec(SampleTargets, longest)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over drawn captions."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, SampleTargets)
        owners = targets.rows.cpu().numpy()
        texts = [drawn.token_ids for drawn in self.draw(batch)]
        self.drawn_rows += sum(map(len, texts))
        rewards = self.rewards(texts, targets)
        log_probabilities = self.log_probabilities(batch, texts, owners)
        loss = self_critical_loss(log_probabilities, rewards[REWARD], owners)
        return {OBJECTIVE: loss, **{name: loss.new_tensor(values.sum()) for name, values in rewards.items()}}

    def rewards(self, texts: Sequence[Sequence[int]], targets: SampleTargets) -> dict[str, np.ndarray]:
        """Return the reward of each drawn caption (M,), and its parts if it has two, by name."""
        images = targets.images.cpu().numpy()
        cider = np.asarray(self.reward(texts, images), dtype=np.float64)
        if self.retrieval is None:
            return {REWARD: cider}
        self.retrieval.prepare(targets.images.device)
        end = self.processor.tokenizer.sep
        words = [np.array(text[: len(text) - (text[-1] == end)], dtype=np.int64) for text in texts]
        among = np.column_stack([images, targets.others.cpu().numpy()])
        found = self.retrieval.rewards(words, targets.rows.cpu().numpy(), among)
        return {REWARD: cider + self.retrieval.weight * found, CIDER: cider, RETRIEVAL: found}

    @torch.no_grad()
    def draw(self, batch: Batch) -> list[Sample]:
        """Draw the M captions of a batch, in the order of its targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, SampleTargets)
        images = len(batch.layout.num_regions)  # 0 where a rank has no examples; it still takes as many steps
        draws = targets.draws.view(images, -1 if images else 1, self.longest)
        decoder = CachedDecoder(self.model, self.processor, batch)
        drawn = sample(decoder, self.processor.tokenizer.sep, draws, self.all_ranks)
        return [text for texts in drawn for text in texts]

    def log_probabilities(self, batch: Batch, texts: Sequence[Sequence[int]], owners: np.ndarray) -> Tensor:
        """Log-probability of each text given its prefix, in one forward pass with gradients: (M,).

        Args:
            batch: prefixes without texts.
            texts: token ids, including the final [SEP] if it was drawn; none is empty.
            owners: (M,) prefix of each text, ascending.

        """
        tokenizer, device = self.processor.tokenizer, batch.token_ids.device
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        words = torch.tensor([token for text in texts for token in text], dtype=torch.long, device=device)
        fed = torch.tensor([token for text in texts for token in (tokenizer.cls, *text[:-1])], device=device).long()
        places = [np.arange(length) + self.processor.text_start for length in lengths]
        positions = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *places])).to(device)
        whole = replace(
            batch,
            layout=replace(batch.layout, text_lengths=lengths, text_prefix=owners),
            token_ids=torch.cat([batch.token_ids, fed]),
            positions=torch.cat([batch.positions, positions]),
            segments=torch.cat([batch.segments, torch.ones_like(fed)]),
        )
        rows = self.model(whole)
        assert self.model.word_head is not None
        logits = self.model.word_head(rows[len(rows) - len(words) :]).float()
        never = torch.tensor(tokenizer.unwritten_ids, device=device)
        gained = -F.cross_entropy(logits.index_fill(-1, never, float("-inf")), words, reduction="none")
        of_word = torch.from_numpy(np.repeat(np.arange(len(texts)), lengths)).to(device)
        return gained.new_zeros(len(texts)).index_add(0, of_word, gained)


def advantages(rewards: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Reward of each caption minus the mean of the others of its image (at least one): (M,), (M,) -> (M,)."""
    count = np.bincount(owners)[owners]
    others = (np.bincount(owners, rewards)[owners] - rewards) / (count - 1)
    return rewards - others


def self_critical_loss(log_probabilities: Tensor, rewards: np.ndarray, owners: np.ndarray) -> Tensor:
    """Sum of minus advantage times log-probability: (M,), (M,), (M,) -> ().

    Its gradient, divided by M, is in expectation minus the gradient of the mean reward.
    """
    advantage = torch.from_numpy(advantages(rewards, owners)).to(log_probabilities)
    return -(advantage * log_probabilities).sum()


def token_references(captions: TextStore, end: int) -> list[list[list[int]]]:
    """Return the references of the reward: the token ids of every caption, ending in [SEP], by image."""
    texts = [[*captions.tokens(text).tolist(), end] for text in range(len(captions))]
    return [texts[first:last] for first, last in zip(captions.groups[:-1], captions.groups[1:], strict=True)]


class SampleSource(ImageSource):
    """One example per image and epoch: a prefix, and the numbers that decide which captions are drawn.

    Args:
        captions: tokenised captions, grouped by image, in the order of the reward's references.
        images: reads the region store.
        samples: captions sampled per image.
        longest: L, including [SEP].
        seed: seed of the run.
        among: I; 1 compares with no other image.

    Raises:
        UserError: there are fewer than I images.

    """

    def __init__(
        self, captions: TextStore, images: ImageReader, samples: int, longest: int, seed: int, among: int = 1
    ) -> None:
        super().__init__(captions, images)
        self.samples, self.longest, self.seed, self.among = samples, longest, seed, among
        if among > len(self):
            raise UserError(
                f"self_critical.retrieval.among is {among} but there are captions of {len(self)} images; set it to at "
                f"most {len(self)}"
            )

    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples, including the captions to draw."""
        return self.prefix_rows(epoch, span) + self.samples * self.longest

    def build_from(self, regions: Detections, epoch: int, index: int) -> Example:
        """Build the example of an image in an epoch."""
        generator = keyed_generator(self.seed, "document", epoch, index)
        return Example(
            source=self.texts.describe(index),
            objective=OBJECTIVE,
            prefix=self.images.prefix(regions),
            texts=[],
            seq2seq=True,
            target=Draws(
                generator.random((self.samples, self.longest), dtype=np.float32), index, self.others(epoch, index)
            ),
        )

    def others(self, epoch: int, index: int) -> tuple[int, ...]:
        """Draw I - 1 images to compare with, all different; of groups of several images, those that share none."""
        generator, found, tries = keyed_generator(self.seed, "others", epoch, index), dict[int, None](), 0
        while len(found) < self.among - 1:
            other = (index + int(generator.integers(1, len(self)))) % len(self)
            shares = tries < TRIES and self.texts.share_images(index, other)
            tries += shares
            if not shares:
                found[other] = None
        return tuple(found)
