"""Masking and losses of the objectives.

Masking works on numpy arrays of one example and draws from a keyed generator. Losses are **sums over targets**; the
training loop divides them by the global number of targets of the optimiser step. Without targets, a loss is a zero that
is connected to the weights.

Sources: masked LM and 80/10/10 from BERT; the two LM modes from DiMBERT and VLP; masked object prediction (KL to the
detector's distribution, feature regression) and matching from UNITER and LXMERT; contrastive alignment from CLIP and
FILIP. Deliberate differences: a box is hidden because of the share of a *target* that it covers, not because of IoU;
mismatched pairs have no language or object loss; a contrastive loss is within a group of images, not within a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dimvl.data.align_targets import IGNORED, OWN, AlignTargets
from dimvl.data.region_targets import RegionTargets
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.model.heads import Aligned, ObjectPrediction, RegionScores
from dimvl.regions.geometry import coverage
from dimvl.regions.records import Detections


class MaskedText(NamedTuple):
    """token_ids (T,) with masks, places (M,) of the targets, and labels (M,), the original tokens there."""

    token_ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


def mask_tokens(
    token_ids: np.ndarray,
    generator: np.random.Generator,
    tokenizer: Tokenizer,
    share: float,
    whole_words: bool = False,
) -> MaskedText:
    """Choose tokens to predict; 80% of them become [MASK], 10% a random token, 10% stay.

    Args:
        token_ids: (T,)
        generator: keyed by the example.
        tokenizer: for [MASK] and for the random tokens, which are never special ones.
        share: share of the tokens to choose, rounded; at least one is chosen.
        whole_words: choose all pieces of a word together.

    """
    count = len(token_ids)
    if count == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return MaskedText(token_ids, nothing, nothing)
    groups = np.arange(count)
    if whole_words:
        groups = np.cumsum([not tokenizer.continues_word(int(token)) for token in token_ids])
    order = generator.permutation(np.unique(groups))
    wanted = max(1, round(share * count))
    sizes = np.cumsum([(groups == group).sum() for group in order])
    chosen = order[: int(np.searchsorted(sizes, wanted)) + 1]
    places = np.flatnonzero(np.isin(groups, chosen))
    masked = token_ids.copy()
    draw = generator.random(len(places))
    masked[places[draw < 0.8]] = tokenizer.mask
    replaced = places[(draw >= 0.8) & (draw < 0.9)]
    masked[replaced] = generator.choice(tokenizer.ordinary_ids, size=len(replaced))
    return MaskedText(masked, places, token_ids[places])


class HiddenRegions(NamedTuple):
    """targets (M,) the regions to predict, hidden (R,) bool all that the model may not see."""

    targets: np.ndarray
    hidden: np.ndarray


def hide_regions(
    boxes: np.ndarray, image_index: np.ndarray, generator: np.random.Generator, share: float, max_cover: float
) -> HiddenRegions:
    """Draw regions to predict, and hide them with every box of the same image that would reveal one of them.

    A visible box may cover at most `max_cover` of a target's area (intersection over the *target's* area, so a
    whole-image region is always hidden). Regions hidden for this reason are not targets.

    Args:
        boxes: (R, 4) fractions, R above 0.
        image_index: (R,) which image each box is in.
        generator: keyed by the example.
        share: fraction of the regions to predict; at least one region.
        max_cover: fraction of a target's area.

    """
    count = max(1, round(share * len(boxes)))
    targets = np.sort(generator.permutation(len(boxes))[:count])
    covers = coverage(boxes, boxes[targets]) > max_cover
    hidden: np.ndarray = np.any(covers & (image_index[:, None] == image_index[targets]), axis=1)
    hidden[targets] = True
    return HiddenRegions(targets, hidden)


def class_distribution(regions: Detections, rows: np.ndarray, classes: int) -> np.ndarray:
    """Spread the kept classes over all K; the last entry is the mass of background and other classes.

    Scores that sum to more than 1 (independent sigmoids, float16 rounding) are divided by their sum.

    Args:
        regions: regions of one image.
        rows: (M,) indices of regions.
        classes: K.

    Returns:
        (M, K + 1), each row sums to 1.

    """
    dense = np.zeros((len(rows), classes + 1), dtype=np.float32)
    for out, row in zip(dense, rows, strict=True):
        kept = regions.class_ids[row] >= 0
        out[regions.class_ids[row][kept]] = regions.class_scores[row][kept]
    dense[:, -1] = regions.other_scores[rows]
    return dense / dense.sum(axis=1, keepdims=True)


class WordChanges:
    """Changes of one word to another of its category, for negatives of image-text matching.

    Args:
        pairs: (old, new) words.
        tokenizer: tokenizer in which every word is one token.

    Raises:
        UserError: an entry is not a pair of words, or a word is not one token.

    """

    def __init__(self, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> None:
        self.by_token: dict[int, list[int]] = {}
        if not isinstance(pairs, Sequence) or isinstance(pairs, str):
            raise UserError(f"word_changes: {pairs!r} is not a list; write [[old word, new word], ...]")
        for pair in pairs:
            is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
            if not is_pair or not all(isinstance(word, str) for word in pair):
                raise UserError(f"word_changes: {pair!r} is not a pair of words; write [[old word, new word], ...]")
            old, new = pair
            ids = []
            for word in (old, new):
                tokens = tokenizer.encode(word)
                if len(tokens) != 1 or tokens[0] in tokenizer.special_ids:
                    raise UserError(f"word_changes: {word!r} is not one token of the tokenizer; remove the pair")
                ids.append(tokens[0])
            self.by_token.setdefault(ids[0], []).append(ids[1])

    def change(self, token_ids: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
        """Change one word; return None if no word can be changed."""
        places = [place for place, token in enumerate(token_ids) if int(token) in self.by_token]
        if not places:
            return None
        place = places[generator.integers(len(places))]
        changed = token_ids.copy()
        choices = self.by_token[int(token_ids[place])]
        changed[place] = choices[generator.integers(len(choices))]
        return changed


def word_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "sum") -> Tensor:
    """Cross entropy, summed: (M, V), (M,) -> (); (M,) with reduction `none`."""
    return F.cross_entropy(logits.float(), labels, reduction=reduction, label_smoothing=smoothing)


def object_class_loss(prediction: ObjectPrediction, class_probabilities: Tensor) -> Tensor:
    """KL(detector || prediction) over K classes and the other mass, summed: (M, K + 1) twice -> ()."""
    log_probabilities = prediction.class_logits.float().log_softmax(dim=-1)
    return F.kl_div(log_probabilities, class_probabilities, reduction="sum")


def object_feature_loss(prediction: ObjectPrediction, features: Tensor) -> Tensor:
    """Squared error, averaged over features and summed over regions: (M, F) twice -> ()."""
    return (prediction.features.float() - features).square().mean(dim=-1).sum()


def match_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy, 1 = match, summed: (M,), (M,) -> ()."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")


def choice_loss(logits: Tensor, counts: Sequence[int], right: Tensor) -> Tensor:
    """Cross entropy of the right candidate among those of its question, summed over questions.

    Args:
        logits: (M,) of the candidates, question by question.
        counts: (Q,) candidates of each question; they may differ.
        right: (Q,) place of the right one.

    """
    if not counts:
        return logits.float().sum()
    padded = pad_sequence(logits.float().split(list(counts)), batch_first=True, padding_value=-torch.inf)
    return F.cross_entropy(padded, right, reduction="sum")


def contrastive_losses(aligned: Aligned, targets: AlignTargets) -> tuple[Tensor, Tensor]:
    """Contrastive losses of the global and of the token-wise score, each summed over images: (), ().

    For each image, half of the cross entropy of its own texts among those of its group (their mean), and half of that
    of the image among the group's, averaged over its texts (CLIP: Radford et al., ICML 2021). Ignored pairs take no
    part. The token-wise score of an image for its texts is the mean over regions of the most similar word, that of a
    text for its images the mean over words of the most similar region (FILIP: Yao et al., ICLR 2022, equations 4 and
    5). Groups are independent, so ranks and micro-batches change nothing.
    """
    with torch.autocast(aligned.images.device.type, enabled=False):
        every = zip(_grouped(aligned, targets), targets.groups, strict=True)
        zero = sum((part.sum() for part in aligned), torch.zeros((), device=aligned.images.device)) * 0.0
        whole, tokens, place = zero, zero, 0
        for (images, regions, region_counts, texts, words, word_counts), (rows, columns) in every:
            relations = targets.relations[place : place + rows * columns].view(rows, columns)
            place += rows * columns
            cosines = images @ texts.T
            whole = whole + _group_loss(aligned.scales[0] * cosines, aligned.scales[0] * cosines, relations)
            to_texts, to_images = token_similarities(regions, region_counts, words, word_counts)
            tokens = tokens + _group_loss(aligned.scales[1] * to_texts, aligned.scales[1] * to_images, relations)
    return whole, tokens


Part = tuple[Tensor, Tensor, Sequence[int], Tensor, Tensor, Sequence[int]]


def _grouped(aligned: Aligned, targets: AlignTargets) -> Iterator[Part]:
    """Yield images, regions and their counts, texts, words and their counts of each group."""
    image, text, region, word = 0, 0, 0, 0
    for rows, columns in targets.groups:
        images, texts = slice(image, image + rows), slice(text, text + columns)
        region_counts, word_counts = targets.region_counts[images], targets.word_counts[texts]
        regions, words = slice(region, region + sum(region_counts)), slice(word, word + sum(word_counts))
        yield (
            *(aligned.images[images], aligned.regions[regions], region_counts),
            *(aligned.texts[texts], aligned.words[words], word_counts),
        )
        image, text, region, word = images.stop, texts.stop, regions.stop, words.stop


def token_similarities(
    regions: Tensor, region_counts: Sequence[int], words: Tensor, word_counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the token-wise scores of I images for T texts, and of the texts for the images: (I, T) each.

    Args:
        regions: (R, E) unit vectors, image by image.
        region_counts: (I,) regions of each image; the scores of one without any are 0.
        words: (L, E) unit vectors, text by text.
        word_counts: (T,) words of each text, at least one.

    """
    similar = regions @ words.T
    to_words = segment_maxima(similar, region_counts)  # (I, L)
    to_regions = segment_maxima(similar.T, word_counts)  # (T, R)
    return segment_means(to_regions.T, region_counts), segment_means(to_words.T, word_counts).T


def segment_maxima(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Maximum of each column over consecutive rows: (sum of S counts, C) -> (S, C); 0 for a segment without rows."""
    nothing = values.new_zeros(values.shape[1])
    return torch.stack([part.amax(dim=0) if len(part) else nothing for part in values.split(list(counts))])


def segment_means(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean of each column over consecutive rows: (sum of S counts, C) -> (S, C); 0 for a segment without rows."""
    return torch.stack([part.sum(dim=0) / max(1, len(part)) for part in values.split(list(counts))])


def _group_loss(to_texts: Tensor, to_images: Tensor, relations: Tensor) -> Tensor:
    """Sum over images of the two halves of a group's contrastive loss: logits (I, T) twice, (I, T) -> ()."""
    own, ignored = relations == OWN, relations == IGNORED
    share = own / own.sum(dim=1, keepdim=True)  # each image's texts count as one
    loss = to_texts.new_zeros(())
    for logits, dim in ((to_texts, 1), (to_images, 0)):
        losses = -logits.masked_fill(ignored, -torch.inf).log_softmax(dim=dim)
        loss = loss + 0.5 * (share * losses.masked_fill(~own, 0.0)).sum()
    return loss


def region_loss(scores: RegionScores, targets: RegionTargets) -> Tensor:
    """Negative log of the probability that a softmax over a phrase's regions gives to all right ones together, summed.

    Any right region is as good as another, as in the evaluation, so the model may choose; a soft target would have it
    spread over overlapping boxes. Where no region is right, that is a class of its own, which the scores must have.
    """
    owners, right, number = targets.pair_texts, targets.right, len(targets)
    every = segment_logsumexp(scores.pairs, owners, number)
    wanted = segment_logsumexp(scores.pairs[right], owners[right], number)
    if scores.nowhere is not None:
        found = torch.zeros(number, dtype=torch.bool, device=right.device).index_fill(0, owners[right], True)
        every, wanted = torch.logaddexp(every, scores.nowhere), torch.where(found, wanted, scores.nowhere)
    return (every - wanted).sum()


def segment_logsumexp(values: Tensor, owners: Tensor, number: int) -> Tensor:
    """Return log-sum-exp of the values (S,) of each owner (S,): (number,); -inf for an owner without values."""
    nothing = values.new_full((number,), -torch.inf)
    highest = nothing.scatter_reduce(0, owners, values.detach(), "amax")
    sums = values.new_zeros(number).index_add(0, owners, (values - highest[owners]).exp())
    return sums.log() + highest


def answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Binary cross entropy to soft scores, summed over answers and questions: (M, A), (M, A) -> ().

    A question without a known answer counts too; its scores are all zero.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="sum")


def normalise(losses: Mapping[str, Tensor], counts: Mapping[str, int], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight x loss / global count: a micro-batch's part of the loss of an optimiser step.

    Args:
        losses: name -> sum over targets; a name is `objective` or `objective/part`.
        counts: objective -> number of targets in the whole optimiser step, over all ranks and micro-batches.
        weights: name -> weight.

    """
    parts = [weights[name] * loss / max(1, counts[name.partition("/")[0]]) for name, loss in losses.items()]
    return torch.stack(parts).sum()
