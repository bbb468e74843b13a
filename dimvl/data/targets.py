"""What a batch has to predict: one class per kind of target, which collects targets from examples and counts them.

An example carries the payload of its kind (`Example.target`); `gather` turns the payloads of all examples with one
objective into tensors. A kind names the head that runs on its rows, so that FLOPs, memory and profiles include it.
Targets of grounding and of contrastive learning are in `region_targets.py` and `align_targets.py`.

Letters: M targets, P prefixes, K classes, A answers, S captions drawn for an image, L words, I images that a caption
is compared with, Q questions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dimvl.data.layout import Layout, ranges, starts_of

if TYPE_CHECKING:
    from dimvl.data.examples import Example, Text


@dataclass(frozen=True)
class Chosen:
    """The examples of a batch that have one objective.

    Attributes:
        layout: the layout of the whole batch.
        examples: all examples of the batch.
        indices: indices of the chosen examples, ascending.

    """

    layout: Layout
    examples: Sequence["Example"]
    indices: Sequence[int]

    @property
    def payloads(self) -> list[Any]:
        """`Example.target` of each chosen example."""
        return [self.examples[index].target for index in self.indices]

    @cached_property
    def text_numbers(self) -> np.ndarray:
        """Numbers, within the batch, of the texts of the chosen examples."""
        counts = lengths([example.texts for example in self.examples])
        return ranges(starts_of(counts)[list(self.indices)], counts[list(self.indices)])

    @property
    def texts(self) -> list["Text"]:
        """The texts of the chosen examples, in the order of `text_numbers`."""
        return [text for index in self.indices for text in self.examples[index].texts]

    @property
    def last_rows(self) -> np.ndarray:
        """The row of the last token of each of these texts."""
        return self.layout.text_starts[self.text_numbers] + self.layout.text_lengths[self.text_numbers] - 1

    @property
    def judged_rows(self) -> np.ndarray:
        """The row from which each of these texts is judged: [CLS], or the last token where [CLS] has not seen it."""
        owner = self.layout.text_prefix[self.text_numbers]
        rows = np.where(self.layout.seq2seq[owner], self.last_rows, self.layout.context_starts[owner])
        return rows.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Targets(ABC):
    """The targets of one objective in a batch.

    Attributes:
        rows: (M,) the row of the batch that each target is predicted from.
        head: name in `dimvl.model.heads.HEADS` of the head that runs on these rows; empty for none.

    """

    rows: Tensor
    head: ClassVar[str]

    def __len__(self) -> int:
        """Return the number of targets M, which the loss of an optimiser step is divided by."""
        return len(self.rows)

    @classmethod
    @abstractmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the targets of the chosen examples, of which there may be none.

        Args:
            chosen: the examples with this objective.
            width: columns of what is predicted, for kinds that have any (see `TargetSpec`).

        """

    @property
    def head_rows(self) -> dict[str, int]:
        """Rows that the head runs on, by its name; of its parts too (`head.part`), if they run on different rows."""
        return {self.head: len(self.rows)} if self.head else {}

    @property
    def similarities(self) -> int:
        """Products of vectors in the shared space that the loss takes."""
        return 0

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor."""
        tensors = {
            field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


class TargetSpec(NamedTuple):
    """The kind of an objective's targets, and how many columns one target has (classes, answers, words)."""

    kind: type[Targets]
    width: int = 0


@dataclass(frozen=True, eq=False)
class WordTargets(Targets):
    """Words to predict: labels (M,) token ids. They come with the texts, so examples have no payload."""

    labels: Tensor
    head = "word_head"

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect places and labels of the texts."""
        return cls(*_words(chosen))


def _words(chosen: Chosen) -> tuple[Tensor, Tensor]:
    texts = chosen.texts
    text_of_word = np.repeat(chosen.text_numbers, lengths([text.places for text in texts]))
    rows = chosen.layout.text_starts[text_of_word] + join([text.places for text in texts], np.int64)
    return torch.from_numpy(rows), torch.from_numpy(join([text.labels for text in texts], np.int64))


class DropWorst(NamedTuple):
    """Payload of a captioning example: how many of its captions, those of highest loss, are dropped."""

    texts: int


@dataclass(frozen=True, eq=False)
class CaptionTargets(Targets):
    """Words of captions to predict, where the captions of highest loss may be dropped.

    Attributes:
        labels: (M,) token ids.
        texts: (M,) the text that each word belongs to.
        drop: (P,) how many texts of each prefix are dropped.

    """

    labels: Tensor
    texts: Tensor
    drop: Tensor
    head = "word_head"

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect places and labels of the texts, and the payloads `DropWorst` where examples have one."""
        text_of_word = np.repeat(chosen.text_numbers, lengths([text.places for text in chosen.texts]))
        drop = np.zeros(len(chosen.examples), dtype=np.int64)
        drop[list(chosen.indices)] = [0 if payload is None else payload.texts for payload in chosen.payloads]
        return cls(*_words(chosen), torch.from_numpy(text_of_word), torch.from_numpy(drop))


class Draws(NamedTuple):
    """Payload of an example whose captions are drawn.

    Attributes:
        numbers: (S, L) float32 in [0, 1), which decide the words of S captions.
        reference: the image's place in the references that the reward compares with.
        others: (I - 1,) places of the images that a caption must tell it from.

    """

    numbers: np.ndarray
    reference: int
    others: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SampleTargets(Targets):
    """Captions to draw.

    Attributes:
        rows: (M,) the prefix of each caption (no row of the batch: the caption's rows do not exist yet).
        images: (M,) the image's place in the references.
        draws: (M, L) numbers in [0, 1) that decide the words.
        others: (M, I - 1) places of the images that the caption must tell its own from.

    """

    images: Tensor
    draws: Tensor
    others: Tensor
    head = ""

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Draws`; `width` is L."""
        payloads: list[Draws] = chosen.payloads
        samples = lengths([payload.numbers for payload in payloads])
        owner = np.repeat(np.array(chosen.indices, dtype=np.int64), samples)
        images = np.repeat(np.array([payload.reference for payload in payloads], dtype=np.int64), samples)
        draws = _stack([payload.numbers for payload in payloads], width)
        others = np.repeat(np.array([payload.others for payload in payloads], dtype=np.int64), samples, axis=0)
        return cls(*map(torch.from_numpy, (owner, images, draws, others)))


class HiddenObjects(NamedTuple):
    """Payload of masked object prediction.

    Attributes:
        regions: (M,) the regions of the prefix to predict.
        class_probabilities: (M, K + 1) the detector's classes; the probability of all others comes last.

    """

    regions: np.ndarray
    class_probabilities: np.ndarray


@dataclass(frozen=True, eq=False)
class ObjectTargets(Targets):
    """Regions to predict.

    Attributes:
        rows: (M,) the rows of these regions, whose features the batch has.
        class_probabilities: (M, K + 1), in the last column the mass of background and of classes that the store
            did not keep.

    """

    class_probabilities: Tensor
    head = "object_head"

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `HiddenObjects`; `width` is K + 1."""
        payloads: list[HiddenObjects] = chosen.payloads
        starts = chosen.layout.region_starts[list(chosen.indices)]
        rows = [start + payload.regions for start, payload in zip(starts, payloads, strict=True)]
        probabilities = _stack([payload.class_probabilities for payload in payloads], width)
        return cls(torch.from_numpy(join(rows, np.int64)), torch.from_numpy(probabilities))


class Matches(NamedTuple):
    """Payload of image-text matching: for each text 1 if it belongs to the prefix, else 0."""

    labels: Sequence[float]


@dataclass(frozen=True, eq=False)
class MatchTargets(Targets):
    """Pairs to judge: labels (M,) float, 1 if the text belongs to the image.

    A pair is judged from [CLS]; in a sequence-to-sequence example [CLS] has not seen the text, so the text's last row
    is used instead.
    """

    labels: Tensor
    head = "match_head"

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Matches`; without one, no text matches."""
        labels = [
            label
            for index, payload in zip(chosen.indices, chosen.payloads, strict=True)
            for label in ([0.0] * len(chosen.examples[index].texts) if payload is None else payload.labels)
        ]
        return cls(torch.from_numpy(chosen.judged_rows), torch.tensor(labels, dtype=torch.float32))


class Candidates(NamedTuple):
    """Payload of questions with candidates; where each has an example of its own, that of the first has it.

    Attributes:
        counts: (Q,) candidates of each question, in the order of the texts.
        right: (Q,) place of the right one among them.

    """

    counts: Sequence[int]
    right: Sequence[int]


@dataclass(frozen=True, eq=False)
class ChoiceTargets(Targets):
    """Questions with candidates, each judged as a pair is: see `MatchTargets`.

    Attributes:
        rows: (M,) the row that each candidate is judged from.
        right: (Q,) place of the right one among the candidates of each question.
        counts: candidates of each question.

    """

    right: Tensor
    counts: tuple[int, ...]
    head = "match_head"

    def __len__(self) -> int:
        """Return the number of questions Q, whose losses an optimiser step averages."""
        return len(self.right)

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Candidates`."""
        counts, right = (
            [number for payload in chosen.payloads if payload is not None for number in payload[part]]
            for part in (0, 1)
        )
        return cls(torch.from_numpy(chosen.judged_rows), torch.tensor(right, dtype=torch.long), tuple(counts))


class Answers(NamedTuple):
    """Payload of questions: (number of texts, A) soft scores."""

    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class AnswerTargets(Targets):
    """Questions, answered from their last token: scores (M, A) soft targets."""

    scores: Tensor
    head = "answer_head"

    @classmethod
    def gather(cls, chosen: Chosen, width: int) -> Self:
        """Collect the payloads `Answers`, none where only the prediction is wanted; `width` is A."""
        scores = [
            np.zeros((len(chosen.examples[index].texts), width)) if payload is None else payload.scores
            for index, payload in zip(chosen.indices, chosen.payloads, strict=True)
        ]
        return cls(torch.from_numpy(chosen.last_rows.astype(np.int64)), torch.from_numpy(_stack(scores, width)))


@dataclass(frozen=True, eq=False)
class LabelTargets(AnswerTargets):
    """Texts and their images to classify, from the last token of the text: scores (M, K), 1 for a label that fits."""

    head = "label_head"


def lengths(items: Sequence[Sequence[object] | np.ndarray]) -> np.ndarray:
    """Return the length of each item: (I,) int64."""
    return np.array([len(item) for item in items], dtype=np.int64)


def join(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Concatenate arrays; no arrays give an empty one."""
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)


def _stack(arrays: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Concatenate (., width) arrays as float32; no arrays give (0, width)."""
    return np.concatenate([np.zeros((0, width), np.float32), *arrays]).astype(np.float32, copy=False)
