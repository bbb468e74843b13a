"""Picture in, answer or caption out: an export made usable in three lines of Python.

    predictor = Predictor.from_pretrained("exports/vqa")
    predictor.answer("photo.png", "what color is the star?")

The detector, and with it torchvision, is loaded with the first picture. Nothing of the training code is needed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from PIL import Image

from dimvl.callbacks import Progress
from dimvl.data.examples import Prefix, best_regions, make_prefix
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.export import DETECTOR, check_export
from dimvl.files import HUB_NAME
from dimvl.pretrained import TrainedModel, choose_device, load_model
from dimvl.regions.detectors import load_detector
from dimvl.regions.detectors.base import RegionDetector
from dimvl.regions.extract import detect_files
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.images import load_image, quiet_decoders, upright_rgb
from dimvl.regions.records import Regions

logger = logging.getLogger(__name__)
Picture = str | Path | Image.Image | Regions
Pictures = list[str] | list[Path] | list[Image.Image] | list[Regions] | list[Picture]
Key = str | int
Item = TypeVar("Item")
AT_ONCE = 32  # pictures that are looked at together
ROWS_AT_ONCE = 2048  # regions, tags and words in one forward; with four times as many a CPU spends a fifth on memory
ROWS_CACHED = 8192  # prefixes and words of the captions that are written together
READERS = 2  # threads that read pictures ahead


@dataclass(frozen=True)
class Answer:
    """The best answer with its probability, and the best few (answer, probability), best first.

    Each answer has a probability of its own (a sigmoid, as is usual for VQA v2); they do not add up to 1.
    """

    text: str
    probability: float
    top: list[tuple[str, float]]


class RegionDrop(NamedTuple):
    """A region and what it was worth to an answer.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the upright picture.
        name: class of the region, empty if unknown.
        attributes: in reading order.
        score: probability of the class.
        probability_drop: the answer's probability minus what is left when the region and its tags are removed.

    """

    box: tuple[float, float, float, float]
    name: str
    attributes: tuple[str, ...]
    score: float
    probability_drop: float


@dataclass(frozen=True)
class Explanation:
    """An answer and, for each region, the probability drop when the region is removed; largest drop first."""

    answer: Answer
    regions: list[RegionDrop]


class Predictor:
    """A trained model with its detector.

    Args:
        trained: model and processor.
        detector: folder of the detector; it is loaded with the first picture.

    """

    def __init__(self, trained: TrainedModel, detector: Path) -> None:
        self.trained = trained
        self._detector_folder = detector
        self._tags = trained.processor.tags

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto") -> "Predictor":
        """Open an export.

        Args:
            name: a folder, or the name of a model on the Hugging Face hub (`owner/model`).
            device: `auto` (CUDA if there is one), `cpu` or `cuda`.

        Raises:
            UserError: it does not exist, a file is missing or damaged, or there is no such device.

        """
        folder = _local_folder(name)
        check_export(folder)
        return cls(load_model(folder, choose_device(device)).for_prediction(), folder / DETECTOR)

    @overload
    def regions(self, images: Picture) -> Regions: ...
    @overload
    def regions(self, images: Pictures) -> list[Regions]: ...
    def regions(self, images: Picture | Pictures) -> Regions | list[Regions]:
        """Find the regions of a picture or of a list of pictures; pass them on in the place of pictures to reuse them.

        Args:
            images: paths, PIL pictures or regions; a picture that comes twice is looked at once.

        Raises:
            UserError: a picture cannot be read, or regions are of another width than the model's.

        """
        pictures = _listed(images)
        found: dict[Key, Regions] = {}
        waiting: dict[Key, Image.Image] = {}
        for picture in pictures:
            key = _key(picture)
            if isinstance(picture, Regions):
                found[key] = picture
            elif key not in found and key not in waiting:
                waiting[key] = upright_rgb(picture) if isinstance(picture, Image.Image) else load_image(Path(picture))
            if len(waiting) == AT_ONCE:
                found |= self._detect(waiting)
                waiting = {}
        found |= self._detect(waiting)
        result = [found[_key(picture)] for picture in pictures]
        return result if isinstance(images, list) else result[0]

    def regions_of_files(
        self,
        files: Sequence[Path],
        skipped: list[tuple[Path, str]],
        progress: Progress | None = None,
    ) -> Iterator[list[Regions]]:
        """Find the regions of many pictures, a few at a time, in their order, while the next ones are being read.

        A picture that cannot be read, or on which the detector fails, is logged and left out.

        Args:
            files: of pictures; `image_id` of the regions is the path as text.
            skipped: grows by each picture that is left out, with the reason.
            progress: called with pictures dealt with and in total.

        """
        with quiet_decoders():
            images = [(str(file), file) for file in files]
            for done, regions in detect_files(images, self._detector, skipped, AT_ONCE, READERS):
                if regions:
                    yield regions
                if progress is not None:
                    progress(done, len(files))

    @overload
    def answer(self, images: Picture, questions: str, top: int = 5) -> Answer: ...
    @overload
    def answer(self, images: Picture | Pictures, questions: list[str], top: int = 5) -> list[Answer]: ...
    @overload
    def answer(self, images: Pictures, questions: str, top: int = 5) -> list[Answer]: ...
    def answer(self, images: Picture | Pictures, questions: str | list[str], top: int = 5) -> Answer | list[Answer]:
        """Answer a question on a picture, or lists of them; one picture with many questions is looked at once.

        Args:
            images: one picture, or a list.
            questions: one question, or a list; two lists are taken in pairs.
            top: number of best answers to tell.

        Raises:
            UserError: an empty question, a picture that cannot be read, or a model that does not answer.

        """
        self.trained.require("answer")
        answers = [
            self._answer(row, top) for row in self._of_pairs(images, questions, self.trained.answer_probabilities)
        ]
        return answers if isinstance(images, list) or isinstance(questions, list) else answers[0]

    @overload
    def caption(self, images: Picture, beams: int = 3) -> str: ...
    @overload
    def caption(self, images: Pictures, beams: int = 3) -> list[str]: ...
    def caption(self, images: Picture | Pictures, beams: int = 3) -> str | list[str]:
        """Describe a picture or a list of pictures.

        Args:
            images: one picture, or a list.
            beams: width of the beam search; 1 is greedy.

        Raises:
            UserError: a picture that cannot be read, or a model that does not caption.

        """
        self.trained.require("caption")
        prefixes = self._prefixes(self.regions(_listed(images)))
        options = DecodingOptions(beams=beams)
        text_rows = beams * (self.trained.processor.text_tokens + 1)
        parts = _parts([_rows(prefix) + text_rows for prefix in prefixes], ROWS_CACHED)
        captions = [text for part in parts for text in self.trained.captions(prefixes[part], options)]
        return captions if isinstance(images, list) else captions[0]

    @overload
    def match(self, images: Picture, texts: str) -> float: ...
    @overload
    def match(self, images: Picture | Pictures, texts: list[str]) -> list[float]: ...
    @overload
    def match(self, images: Pictures, texts: str) -> list[float]: ...
    def match(self, images: Picture | Pictures, texts: str | list[str]) -> float | list[float]:
        """Probability that a text belongs to a picture, or those of lists of them.

        Args:
            images: one picture, or a list.
            texts: one text, or a list; two lists are taken in pairs.

        Raises:
            UserError: an empty text, a picture that cannot be read, or a model that does not match.

        """
        self.trained.require("match")
        probabilities = self._of_pairs(images, texts, self.trained.match_probabilities).tolist()
        return probabilities if isinstance(images, list) or isinstance(texts, list) else probabilities[0]

    def explain(self, image: Picture, question: str, top: int = 5) -> Explanation:
        """Answer a question and tell what the answer looked at: the probability drop when a region is removed.

        Each region in turn is taken away, with the tags that only it gives; the question is asked on all of these and
        on the whole in one batch.

        Args:
            image: one picture.
            question: one question.
            top: number of best answers to tell.

        Raises:
            UserError: as `answer`.

        """
        self.trained.require("answer")
        words = self.trained.tokenise([question])[0]
        regions = self._best(self.regions(image))
        without = [_without(regions, place) for place in range(len(regions))]
        prefixes = [make_prefix(shown, self._tags) for shown in (regions, *without)]
        probabilities = self.trained.answer_probabilities(prefixes, [words] * len(prefixes))
        answer = self._answer(probabilities[0], top)
        best = probabilities[:, int(probabilities[0].argmax())]
        drops = (best[0] - best[1:]).tolist()
        described = [self._describe(regions, place, drop) for place, drop in enumerate(drops)]
        return Explanation(answer, sorted(described, key=lambda region: -region.probability_drop))

    @cached_property
    def _detector(self) -> RegionDetector:
        detector = load_detector(self._detector_folder)
        self.trained.processor.check_extractor(detector.extractor, str(self._detector_folder))
        return detector.to(self.trained.device)

    def _detect(self, images: Mapping[Key, Image.Image]) -> dict[Key, Regions]:
        if not images:
            return {}
        return {
            key: Regions(image_id=str(key), width=image.width, height=image.height, **vars(seen))
            for (key, image), seen in zip(images.items(), self._detector.detect(list(images.values())), strict=True)
        }

    def _best(self, regions: Regions) -> Regions:
        """Return the regions that the model takes.

        Raises:
            UserError: they are of another width than the model's.

        """
        width, given = self.trained.processor.extractor.feature_width, regions.features.shape[1]
        if given != width:
            raise UserError(
                f"the regions of {regions.image_id} have features of width {given}, the model takes {width}; give the "
                "picture itself"
            )
        return best_regions(regions, self.trained.processor.max_regions)

    def _of_pairs(
        self,
        images: Picture | Pictures,
        texts: str | list[str],
        probabilities: Callable[[list[Prefix], list[np.ndarray]], torch.Tensor],
    ) -> torch.Tensor:
        """Probabilities of each pair: (M, ...), each picture's texts together whatever the order of the pairs.

        The texts are checked before any picture is looked at.
        """
        pictures, given = _listed(images), texts if isinstance(texts, list) else [texts]
        words = self.trained.tokenise(given)
        if len(pictures) != len(given) and 1 not in (len(pictures), len(given)):
            raise UserError(f"{len(pictures)} pictures and {len(given)} texts do not pair up; give as many of each")
        count = len(given) if len(pictures) == 1 else len(pictures)
        if not count:
            return torch.zeros(0)
        prefixes, words = _repeated(self._prefixes(self.regions(pictures)), count), _repeated(words, count)
        first: dict[int, int] = {}  # where each prefix comes first
        for place, prefix in enumerate(prefixes):
            first.setdefault(id(prefix), place)
        order = sorted(range(count), key=lambda place: first[id(prefixes[place])])
        prefixes, words = [prefixes[place] for place in order], [words[place] for place in order]
        apart = [not (self.trained.processor.shared_prefix and one is other) for one, other in pairwise(prefixes)]
        rows = [_rows(prefix) * own for prefix, own in zip(prefixes, [True, *apart], strict=True)]
        parts = _parts([before + len(text) + 1 for before, text in zip(rows, words, strict=True)], ROWS_AT_ONCE)
        found = torch.cat([probabilities(prefixes[part], words[part]) for part in parts])
        return found[np.argsort(order)]

    def _prefixes(self, images: Sequence[Regions]) -> list[Prefix]:
        """One prefix for each; regions that come twice (the same object) give the same prefix."""
        made = {id(regions): make_prefix(self._best(regions), self._tags) for regions in images}
        return [made[id(regions)] for regions in images]

    def _answer(self, probabilities: torch.Tensor, top: int) -> Answer:
        answers = self.trained.processor.answers
        best = probabilities.topk(min(top, len(answers)))
        ranked = [(answers[place], value) for value, place in zip(*(part.tolist() for part in best), strict=True)]
        return Answer(*ranked[0], ranked)

    def _describe(self, regions: Regions, place: int, drop: float) -> RegionDrop:
        extractor = self.trained.processor.extractor
        box = fractions_to_pixels(regions.boxes[place], regions.width, regions.height).tolist()
        class_ids = regions.class_ids[place]
        known = bool(len(class_ids)) and class_ids[0] >= 0
        return RegionDrop(
            box=(box[0], box[1], box[2], box[3]),
            name=extractor.classes[class_ids[0]] if known else "",
            attributes=tuple(extractor.attributes[index] for index in regions.attribute_ids[place] if index >= 0),
            score=float(regions.class_scores[place][0]) if known else 0.0,
            probability_drop=drop,
        )


def _listed(images: Picture | Pictures) -> list[Picture]:
    return list(images) if isinstance(images, list) else [images]


def _rows(prefix: Prefix) -> int:
    return len(prefix.features) + len(prefix.context)


def _parts(rows: Sequence[int], most: int) -> list[slice]:
    """Cut a list of items with so many rows each into parts of at most `most` rows and at least one item."""
    starts, total = [0], 0
    for place, count in enumerate(rows):
        if total + count > most and place > starts[-1]:
            starts.append(place)
            total = 0
        total += count
    return [slice(*ends) for ends in pairwise([*starts, len(rows)])] if rows else []


def _repeated(items: Sequence[Item], count: int) -> list[Item]:
    return list(items) * count if len(items) == 1 else list(items)


def _key(picture: Picture) -> Key:
    """What makes two pictures the same one."""
    return str(picture) if isinstance(picture, str | Path) else id(picture)


def _without(regions: Regions, place: int) -> Regions:
    arrays: dict[str, Any] = {
        name: np.delete(value, place, axis=0) for name, value in vars(regions).items() if isinstance(value, np.ndarray)
    }
    return replace(regions, **arrays)


def _local_folder(name: str | Path) -> Path:
    """Find an export: a folder here, or else a model of the hub, downloaded once."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    # "exports/vqa" looks like a name on the hub; where there is a folder "exports", a folder was meant.
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name) or folder.parent.is_dir():
        raise UserError(f"{name} does not exist; give the folder of an export or a model's name on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is neither a folder here nor a model of the hub in reach ({reason})") from error
