"""Predictions of an export from images in a few lines of Python.

    predictor = Predictor.from_pretrained("exports/vqa")
    predictor.answer("image.png", "what color is the star?")

A list of images is a batch; a tuple of images is one input. The detector, and with it torchvision, is loaded with the
first image. The training code is not needed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from dimvl.callbacks import Progress
from dimvl.data.answers import Answer
from dimvl.data.prefixes import Prefix, PrefixRegions, best_regions, join_images, make_prefix
from dimvl.errors import UserError
from dimvl.export import DETECTOR, check_export, find_export
from dimvl.regions.detectors.base import RegionDetector
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.extract import detect_files
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.images import load_image, quiet_decoders, upright_rgb
from dimvl.regions.records import Regions
from dimvl.tasks import abilities_of
from dimvl.tasks.task import Ability
from dimvl.trained_model import TrainedModel, choose_device, load_model

logger = logging.getLogger(__name__)
ImageInput = str | Path | Image.Image | Regions
ImageInputs = list[str] | list[Path] | list[Image.Image] | list[Regions] | list[ImageInput]
Input = ImageInput | tuple[ImageInput, ...]
Inputs = ImageInputs | list[tuple[Any, ...]] | list[Input]
Texts = str | list[str]
Times = Sequence[float] | Sequence[Sequence[float]] | None
Key = str | int
AT_ONCE = 32  # images in one call of the detector
ROWS_AT_ONCE = 2048  # rows of one forward pass; with 8192, a CPU spends a fifth of the time on memory
ROWS_CACHED = 8192  # rows of captions decoded together, including their prefixes
READERS = 2  # threads that read images ahead


class RegionDrop(NamedTuple):
    """A region and how much an answer depends on it.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the upright image.
        name: class of the region; empty if unknown.
        attributes: attributes in reading order.
        score: probability of the class.
        probability_drop: probability of the answer minus its probability without the region and its tags.
        image: number of its image in a tuple of several, from 0.

    """

    box: tuple[float, float, float, float]
    name: str
    attributes: tuple[str, ...]
    score: float
    probability_drop: float
    image: int = 0


@dataclass(frozen=True)
class Explanation:
    """An answer and the probability drop when each region is removed, the largest drop first."""

    answer: Answer
    regions: list[RegionDrop]


class Predictor:
    """A trained model with its detector.

    Args:
        trained: the model.
        detector: folder of the detector.

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
            device: `auto` (CUDA if available), `cpu` or `cuda`.

        Raises:
            UserError: it does not exist, a file is missing or damaged, or the device is not available.

        """
        folder = find_export(name)
        check_export(folder)
        return cls(load_model(folder, choose_device(device)).for_prediction(), folder / DETECTOR)

    @overload
    def regions(self, images: ImageInput) -> Regions: ...
    @overload
    def regions(self, images: ImageInputs) -> list[Regions]: ...
    def regions(self, images: ImageInput | ImageInputs) -> Regions | list[Regions]:
        """Find the regions of an image or a list of images; pass these instead of the images to save time.

        Args:
            images: paths, PIL images or regions; an image that occurs twice is processed once.

        Raises:
            UserError: an image cannot be read, or the detector does not belong to the model.

        """
        listed = _listed(images)
        found = {_key(image): image for image in listed if isinstance(image, Regions)}
        others = {_key(image): image for image in listed if not isinstance(image, Regions)}
        for start in range(0, len(others), AT_ONCE):
            keys = list(others)[start : start + AT_ONCE]
            opened = [_open(others[key]) for key in keys]
            for key, image, seen in zip(keys, opened, self._detector.detect(opened), strict=True):
                found[key] = Regions(image_id=str(key), width=image.width, height=image.height, **vars(seen))
        result = [found[_key(image)] for image in listed]
        return result if isinstance(images, list) else result[0]

    def regions_of_files(
        self, files: Sequence[Path], skipped: list[tuple[Path, str]], progress: Progress | None = None
    ) -> Iterator[list[Regions]]:
        """Find the regions of many image files, in order, a few at a time while the next ones are being read.

        Args:
            files: image files; `image_id` of the regions is the path as text.
            skipped: receives each image that cannot be read or on which the detector fails, with the reason; these
                images are also logged.
            progress: called with (images processed, images in total).

        """
        with quiet_decoders():
            images = [(str(file), file) for file in files]
            for done, regions in detect_files(images, self._detector, skipped, AT_ONCE, READERS):
                if regions:
                    yield regions
                if progress is not None:
                    progress(done, len(files))

    def check(self, inputs: Sequence[Input], times: Sequence[Sequence[float]] | None) -> None:
        """Refuse inputs with more images than the model takes, times that it does not use, or not one per image."""
        processor, counts = self.trained.processor, [len(_images(one)) for one in inputs]
        if wrong := [count for count in counts if not 1 <= count <= processor.max_images]:
            raise UserError(
                f"an input has {wrong[0]} images but the model takes 1 to {processor.max_images}; change the number of "
                "images, or train with a larger inputs.max_images"
            )
        if times is not None and not processor.times:
            raise UserError("the model does not use times; omit them, or train with inputs.times=true")
        if times is not None and counts != [len(seconds) for seconds in times]:
            raise UserError("the numbers of times and images differ; give one time per image")

    def predict(
        self, verb: str, images: Input | Inputs, texts: Texts | None = None, times: Times = None, **options: Any
    ) -> list[Any]:
        """Apply any ability of the model to images.

        Args:
            verb: name of the ability, such as `answer`, `caption` or `match`; a task may define others.
            images: one image, a tuple of several as one input, or a list of these.
            texts: one text or a list, for an ability that takes texts; two lists are taken in pairs.
            times: seconds of each image of the tuple or, for a list, one sequence per item.
            options: options of the ability.

        Returns:
            One result per image or pair.

        Raises:
            UserError: the model lacks the ability, an image cannot be read, or a text is empty; or as `check`.

        """
        ability = self._ability(verb)
        if ability.takes_text:
            raw = self._of_pairs(images, texts if texts is not None else [], ability, times)
        else:
            raw = self._of_images(images, ability, options, times)
        return [ability.result(self.trained, one, **options) for one in raw]

    @overload
    def answer(self, images: Input, questions: str, top: int = 5, times: Times = None) -> Answer: ...
    @overload
    def answer(
        self, images: Input | Inputs, questions: list[str], top: int = 5, times: Times = None
    ) -> list[Answer]: ...
    @overload
    def answer(self, images: Inputs, questions: str, top: int = 5, times: Times = None) -> list[Answer]: ...
    def answer(self, images: Input | Inputs, questions: Texts, top: int = 5, times: Times = None) -> Any:
        """Answer a question about an image or a tuple of images, or several questions; two lists are taken in pairs.

        Regions are detected once per image. `top` is the number of answers to return for each question; `times` are as
        in `predict`.

        Raises:
            UserError: an empty question, an image that cannot be read, or a model that cannot answer.

        """
        answers = self.predict("answer", images, questions, times, top=top)
        return answers if isinstance(images, list) or isinstance(questions, list) else answers[0]

    @overload
    def caption(self, images: Input, beams: int = 3, times: Times = None) -> str: ...
    @overload
    def caption(self, images: Inputs, beams: int = 3, times: Times = None) -> list[str]: ...
    def caption(self, images: Input | Inputs, beams: int = 3, times: Times = None) -> str | list[str]:
        """Caption an image, a tuple of images or a list, by beam search of width `beams` (1 is greedy).

        Raises:
            UserError: an image that cannot be read, or a model that cannot caption.

        """
        captions = self.predict("caption", images, None, times, beams=beams)
        return captions if isinstance(images, list) else captions[0]

    @overload
    def match(self, images: Input, texts: str, times: Times = None) -> float: ...
    @overload
    def match(self, images: Input | Inputs, texts: list[str], times: Times = None) -> list[float]: ...
    @overload
    def match(self, images: Inputs, texts: str, times: Times = None) -> list[float]: ...
    def match(self, images: Input | Inputs, texts: Texts, times: Times = None) -> float | list[float]:
        """Return the probability that a text belongs to an image or a tuple, or several; two lists are taken in pairs.

        Raises:
            UserError: an empty text, an image that cannot be read, or a model that cannot match.

        """
        probabilities = self.predict("match", images, texts, times)
        return probabilities if isinstance(images, list) or isinstance(texts, list) else probabilities[0]

    def explain(self, image: Input, question: str, top: int = 5, times: Sequence[float] | None = None) -> Explanation:
        """Answer a question, and return by how much the answer's probability drops without each region.

        Each region in turn is removed, together with the tags that only it has. `top` is the number of answers to
        return.

        Raises:
            UserError: as `answer`.

        """
        ability = self._ability("answer")
        words = self.trained.tokenise([question])[0]
        [(group, seconds)] = self._groups([image], times and [times])
        regions = join_images(group, seconds)
        without = [_without(regions, place) for place in range(len(regions))]
        prefixes = [make_prefix(each, self._tags) for each in (regions, *without)]
        probabilities = ability.apply(self.trained, prefixes, [words] * len(prefixes))
        answer = ability.result(self.trained, probabilities[0], top=top)
        best = probabilities[:, int(probabilities[0].argmax())]
        drops = (best[0] - best[1:]).tolist()
        described = [self._describe(group, regions, place, drop) for place, drop in enumerate(drops)]
        return Explanation(answer, sorted(described, key=lambda region: -region.probability_drop))

    def _ability(self, verb: str) -> Ability:
        able = abilities_of(self.trained.processor)
        if verb not in able:
            raise UserError(
                f"the model {self.trained.weights.parent} cannot {verb}, but it can {' and '.join(able)}; give another "
                "model"
            )
        return able[verb]

    @cached_property
    def _detector(self) -> RegionDetector:
        detector = load_detector(self._detector_folder)
        self.trained.processor.check_extractor(detector.extractor, str(self._detector_folder))
        return detector.to(self.trained.device)

    def _best(self, regions: Regions) -> Regions:
        """Return the regions with the highest scores, as many as the model takes."""
        processor = self.trained.processor
        return best_regions(regions.checked(processor.extractor), processor.max_regions)

    def _of_images(self, images: Input | Inputs, ability: Ability, options: Any, times: Times) -> list[Any]:
        """Return the raw result of each input."""
        prefixes = self._prefixes(images, times)
        added = ability.rows(self.trained, **options)
        parts = _parts([_rows(prefix) + added for prefix in prefixes], ROWS_CACHED)
        return [one for part in parts for one in ability.apply(self.trained, prefixes[part], None, **options)]

    def _of_pairs(self, images: Input | Inputs, texts: Texts, ability: Ability, times: Times) -> list[Any]:
        """Return the raw result of each pair; in any order of the pairs, the texts of an image share its prefix."""
        listed = _listed(images)
        words = self.trained.tokenise(texts if isinstance(texts, list) else [texts])  # refuses empty texts early
        if len(listed) != len(words) and 1 not in (len(listed), len(words)):
            raise UserError(f"{len(listed)} images and {len(words)} texts do not pair up; give as many of each")
        count = len(words) if len(listed) == 1 else len(listed)
        if not count:
            return []
        prefixes = self._prefixes(images, times) * (count if len(listed) == 1 else 1)
        words = words * (count if len(words) == 1 else 1)
        first: dict[int, int] = {}  # id of a prefix -> place of its first pair
        for place, prefix in enumerate(prefixes):
            first.setdefault(id(prefix), place)
        order = sorted(range(count), key=lambda place: first[id(prefixes[place])])
        prefixes, words = [prefixes[place] for place in order], [words[place] for place in order]
        is_new = [not (self.trained.processor.shared_prefix and one is other) for one, other in pairwise(prefixes)]
        rows = [_rows(prefix) * new for prefix, new in zip(prefixes, [True, *is_new], strict=True)]
        parts = _parts([prefix + len(text) + 1 for prefix, text in zip(rows, words, strict=True)], ROWS_AT_ONCE)
        found = [one for part in parts for one in ability.apply(self.trained, prefixes[part], words[part])]
        return [found[place] for place in np.argsort(order)]

    def _prefixes(self, images: Input | Inputs, times: Times) -> list[Prefix]:
        """Make a prefix of each input; the same images and times get the same prefix."""
        groups = self._groups(images, times)
        keys = [(*map(id, regions), own) for regions, own in groups]
        made = {key: make_prefix(join_images(*group), self._tags) for key, group in zip(keys, groups, strict=True)}
        return [made[key] for key in keys]

    def _groups(self, images: Input | Inputs, times: Any) -> list[tuple[list[Regions], tuple[float, ...] | None]]:
        """Return the regions and times of the images of each input; the same image is the same object."""
        listed = _listed(images)
        seconds = times if times is None or isinstance(images, list) else [times]
        self.check(listed, seconds)
        found = self.regions([image for one in listed for image in _images(one)])
        best = {id(regions): self._best(regions) for regions in found}
        every = iter([best[id(regions)] for regions in found])
        groups = [[next(every) for _ in _images(one)] for one in listed]
        own = [None] * len(groups) if seconds is None else map(tuple, seconds)
        return list(zip(groups, own, strict=True))

    def _describe(self, images: Sequence[Regions], regions: PrefixRegions, place: int, drop: float) -> RegionDrop:
        extractor, number = self.trained.processor.extractor, int(regions.image_index[place])
        image = images[number]
        box = fractions_to_pixels(regions.boxes[place], image.width, image.height).tolist()
        class_ids = regions.class_ids[place]
        known = bool(len(class_ids)) and class_ids[0] >= 0
        return RegionDrop(
            box=(box[0], box[1], box[2], box[3]),
            name=extractor.classes[class_ids[0]] if known else "",
            attributes=tuple(extractor.attributes[index] for index in regions.attribute_ids[place] if index >= 0),
            score=float(regions.class_scores[place][0]) if known else 0.0,
            probability_drop=drop,
            image=number,
        )


def _listed(images: Input | Inputs) -> list[Any]:
    return list(images) if isinstance(images, list) else [images]


def _images(one: Any) -> tuple[Any, ...]:
    return one if isinstance(one, tuple) else (one,)


def _rows(prefix: Prefix) -> int:
    return len(prefix.features) + len(prefix.context)


def _parts(rows: Sequence[int], limit: int) -> list[slice]:
    """Split items with these numbers of rows into parts of at most `limit` rows and at least one item."""
    starts, total = [0], 0
    for place, count in enumerate(rows):
        if total + count > limit and place > starts[-1]:
            starts.append(place)
            total = 0
        total += count
    return [slice(*ends) for ends in pairwise([*starts, len(rows)])] if rows else []


def _key(image: ImageInput) -> Key:
    """Return a key that is equal for inputs that are the same image."""
    return str(image) if isinstance(image, str | Path) else id(image)


def _open(image: str | Path | Image.Image) -> Image.Image:
    return upright_rgb(image) if isinstance(image, Image.Image) else load_image(Path(image))


def _without(regions: PrefixRegions, place: int) -> PrefixRegions:
    arrays: dict[str, Any] = {
        name: np.delete(value, place, axis=0) for name, value in vars(regions).items() if isinstance(value, np.ndarray)
    }
    return replace(regions, **arrays)
