"""What a `Predictor` rests on: an opened export, its regions, and any ability applied by its verb."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, overload

from PIL import Image

from dimvl.callbacks import Progress
from dimvl.data.prefixes import Prefix, best_regions, join_images, make_prefix
from dimvl.drawing import draw_explanation, draw_found, side_by_side
from dimvl.errors import UserError
from dimvl.explanation import Explanation
from dimvl.export import DETECTOR, check_export, find_export
from dimvl.image_inputs import (
    AT_ONCE,
    ImageInput,
    Input,
    Inputs,
    RegionFinder,
    Skipped,
    image_at,
    images_of,
    is_batch,
    listed,
)
from dimvl.regions.detectors.base import RegionExtractor
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.showing import short
from dimvl.tasks import abilities_of
from dimvl.tasks.task import Ability
from dimvl.trained_model import TrainedModel, choose_device, load_model

Texts = str | Sequence[str]
Times = Sequence[float] | Sequence[Sequence[float]] | None
ROWS_AT_ONCE = 2048  # rows of one forward pass; with 8192, a CPU spends a fifth of the time on memory
ROWS_CACHED = 8192  # rows of captions decoded together, including their prefixes


class PredictorBase:
    """A trained model with its detector, and its abilities by their verbs.

    Args:
        trained: the model.
        detector: folder of the detector.

    """

    def __init__(self, trained: TrainedModel, detector: Path) -> None:
        self.trained = trained
        self.detector_folder = detector
        self._finder = RegionFinder(trained, detector)
        self._tags = trained.processor.tags

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "auto", check: bool = True, revision: str | None = None
    ) -> Self:
        """Open an export.

        Args:
            name: a folder, or the name of a model on the Hugging Face hub (`owner/model`).
            device: `auto` (CUDA if available), `cpu` or `cuda`.
            check: whether to compare all files with their checksums first.
            revision: branch, tag or commit of a model on the hub; by default the newest of its main branch.

        Raises:
            UserError: it does not exist, a file is missing or damaged, or the device is not available.

        """
        folder = find_export(name, revision)
        check_export(folder)
        return cls(load_model(folder, choose_device(device), check).for_prediction(), folder / DETECTOR)

    def with_adapter(self, folder: str | Path, check: bool = True) -> Self:
        """Return a predictor with an adapter of this model; both share the detector and the model's other weights.

        This one stays as it is, so that several adapters of one base can be used in any order.

        Args:
            folder: the export or the run of the adapter, or its name on the Hugging Face hub.
            check: as in `from_pretrained`.

        Raises:
            UserError: it is not an adapter of this model, or a file is missing or damaged.

        """
        trained = self.trained.with_adapter(find_export(folder), check).for_prediction()
        other = type(self)(trained, self.detector_folder)
        other._finder = self._finder
        return other

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, without its detector."""
        return self.trained.num_parameters

    @property
    def detector(self) -> RegionExtractor:
        """The detector; see `RegionFinder.detector`."""
        return self._finder.detector

    def share_detector(self, other: "PredictorBase") -> None:
        """Use the detector of another predictor on the same device if it is the same one, so that it is loaded once."""
        own, theirs = self.trained, other.trained
        if own.processor.extractor == theirs.processor.extractor and own.device == theirs.device:
            self._finder = other._finder

    @overload
    def regions(self, images: ImageInput) -> Regions: ...  # type: ignore[overload-overlap]
    @overload
    def regions(self, images: Sequence[ImageInput], skipped: None = None) -> list[Regions]: ...
    @overload
    def regions(self, images: Sequence[ImageInput], skipped: Skipped) -> list[Regions | None]: ...
    def regions(self, images: ImageInput | Sequence[ImageInput], skipped: Skipped | None = None) -> Any:
        """Find the regions of an image or a list of images; pass these instead of the images to save time.

        Args:
            images: one image or several; an image that occurs twice is processed once.
            skipped: for a list, receives the place of each image that cannot be read or on which the detector fails,
                with the reason; its result is None. Without it, such an image is an error.

        Raises:
            UserError: an image cannot be read, or the detector does not belong to the model.

        """
        found = [
            group[0] if group else None for group in self._finder.find([(one,) for one in listed(images)], skipped)
        ]
        return found if is_batch(images) else found[0]

    def regions_of_files(
        self, files: Sequence[Path | str], skipped: list[tuple[Path | str, str]], progress: Progress | None = None
    ) -> Iterator[list[Regions]]:
        """Find the regions of many image files, in order, a few at a time while the next ones are being read.

        Args:
            files: image files or addresses; `image_id` of the regions is the path as text.
            skipped: receives each image that cannot be read or on which the detector fails, with the reason; these
                images are also logged.
            progress: called with (images processed, images in total).

        """
        yield from self._finder.of_files(files, skipped, progress)

    def regions_of_store(
        self, store: RegionStore, image_ids: Sequence[str], progress: Progress | None = None
    ) -> Iterator[list[Regions]]:
        """Read the regions of images of a store, in order, a few at a time.

        Args:
            store: the regions.
            image_ids: ids in the store.
            progress: called with (images read, images in total).

        Raises:
            UserError: the store lacks an image, is damaged, or is of another extractor than the model.

        """
        self.trained.processor.check_extractor(store.extractor, str(store.path))
        positions = store.positions(image_ids).tolist()
        for start in range(0, len(positions), AT_ONCE):
            yield [store.read(position) for position in positions[start : start + AT_ONCE]]
            if progress is not None:
                progress(min(start + AT_ONCE, len(positions)), len(positions))

    def draw(self, image: Input, explanation: Explanation | None = None, longest_side: int = 640) -> Image.Image:
        """Draw the regions that the model sees in an image, or of a tuple of images side by side, as a PIL image.

        Args:
            image: one or several, not as regions, which have no pixels.
            explanation: of `explain`; the more of the result's probability is lost without a region, the clearer it is.
            longest_side: pixels on the longest side of each image.

        Raises:
            UserError: an image that cannot be read.

        """
        images = [image_at(one) for one in images_of(image)]
        if explanation is not None:
            return draw_explanation(images, explanation, longest_side)
        [(found, _)] = self._groups([tuple(images)], None, None)  # read once, as an open file must be
        extractor = self.trained.processor.extractor
        drawn = zip(images, found, strict=True)
        return side_by_side([draw_found(one, extractor, own, len(own), longest_side) for one, own in drawn])

    def check(self, verb: str, inputs: Sequence[Input], times: Sequence[Sequence[float]] | None) -> None:
        """Refuse what `predict` refuses, before images are read: an ability, a number of images or times."""
        self._ability(verb)
        self.check_inputs(inputs, times)

    def check_inputs(self, inputs: Sequence[Input], times: Sequence[Sequence[float]] | None) -> None:
        """Refuse inputs with more images than the model takes, times that it does not use, or not one per image."""
        processor, counts = self.trained.processor, [len(images_of(one)) for one in inputs]
        if wrong := [count for count in counts if not 1 <= count <= processor.max_images]:
            raise UserError(
                f"an input has {wrong[0]} images but the model takes 1 to {processor.max_images}; change the number of "
                "images, or train with a larger inputs.max_images"
            )
        if times is not None and not processor.times:
            raise UserError("the model does not use times; omit them, or train with inputs.times=true")
        if times is not None and counts != [len(seconds) for seconds in times]:
            raise UserError("the numbers of times and images differ; give one time per image")
        for seconds in times or ():
            if any(not before <= time for before, time in pairwise((0.0, *seconds))):
                raise UserError(f"times are {short(list(seconds))}; give seconds from 0, in the order of the images")

    def predict(
        self,
        verb: str,
        images: Input | Inputs,
        texts: Texts | None = None,
        times: Times = None,
        skipped: Skipped | None = None,
        **options: Any,
    ) -> list[Any]:
        """Apply any ability of the model to images.

        Args:
            verb: name of the ability, such as `answer`, `caption` or `match`; a task may define others.
            images: one image, a tuple of several as one input, or a list of these.
            texts: one text or a list, for an ability that takes texts; two lists are taken in pairs.
            times: seconds of each image of the tuple or, for a list, one sequence per item.
            skipped: receives the place of each input with an image that cannot be read or on which the detector fails,
                and the reason; the results of that input are None, and the others are as without it. By default, such
                an image is an error, which names the image.
            options: options of the ability.

        Returns:
            One result per input or pair.

        Raises:
            UserError: the model lacks the ability, an image cannot be read, or a text is empty; or as `check`.

        """
        ability = self._ability(verb)
        options = dict(ability.settle(self.trained, **options))
        if ability.takes_text != (texts is not None):
            raise UserError(f"{verb!r} takes {'texts; give them' if ability.takes_text else 'no texts; omit them'}")
        if texts is not None:
            raw = self._of_pairs(images, texts, ability, options, times, skipped)
        else:
            raw = self._of_images(images, ability, options, times, skipped)
        return [None if one is None else ability.result(self.trained, one, **options) for one in raw]

    def _ability(self, verb: str) -> Ability:
        able = abilities_of(self.trained.processor)
        if verb not in able:
            raise UserError(
                f"the model {self.trained.weights.parent} cannot {verb}, but it can {' and '.join(able)}; give another "
                "model"
            )
        return able[verb]

    def _best(self, regions: Regions) -> Regions:
        """Return the regions with the highest scores, as many as the model takes."""
        processor = self.trained.processor
        return best_regions(regions.checked(processor.extractor), processor.max_regions)

    def _of_images(
        self, images: Input | Inputs, ability: Ability, options: Any, times: Times, skipped: Skipped | None
    ) -> list[Any]:
        """Return the raw result of each input; None for one that is skipped."""
        every = self._prefixes(images, times, skipped)
        prefixes = [prefix for prefix in every if prefix is not None]
        added = ability.rows(self.trained, **options)
        parts = parts_of([rows_of(prefix) + added for prefix in prefixes], ROWS_CACHED)
        found = (one for part in parts for one in ability.apply(self.trained, prefixes[part], None, **options))
        return [None if prefix is None else next(found) for prefix in every]

    def _of_pairs(
        self,
        images: Input | Inputs,
        texts: Texts,
        ability: Ability,
        options: Any,
        times: Times,
        skipped: Skipped | None,
    ) -> list[Any]:
        """Return the raw result of each pair, None for one of a skipped input.

        In any order of the pairs, the texts of an image share its prefix.
        """
        inputs = len(listed(images))
        words = list(ability.prepare(self.trained, [texts] if isinstance(texts, str) else texts, **options))
        if inputs != len(words) and 1 not in (inputs, len(words)):
            raise UserError(f"{inputs} images and {len(words)} texts do not pair up; give as many of each")
        count = len(words) if inputs == 1 else inputs
        if not count:
            return []
        every = self._prefixes(images, times, skipped) * (count if inputs == 1 else 1)
        words = words * (count if len(words) == 1 else 1)
        pairs = {place: (prefix, words[place]) for place, prefix in enumerate(every) if prefix is not None}
        first: dict[int, int] = {}  # id of a prefix -> place of its first pair
        for place, (prefix, _) in pairs.items():
            first.setdefault(id(prefix), place)
        order = sorted(pairs, key=lambda place: first[id(every[place])])
        prefixes, words = [pairs[place][0] for place in order], [pairs[place][1] for place in order]
        is_new = [not (self.trained.processor.shared_prefix and one is other) for one, other in pairwise(prefixes)]
        rows = [rows_of(prefix) * new for prefix, new in zip(prefixes, [True, *is_new], strict=bool(prefixes))]
        parts = parts_of([prefix + len(text) + 1 for prefix, text in zip(rows, words, strict=True)], ROWS_AT_ONCE)
        found = [one for part in parts for one in ability.apply(self.trained, prefixes[part], words[part])]
        results = dict(zip(order, found, strict=True))
        return [results.get(place) for place in range(count)]

    def _prefixes(self, images: Input | Inputs, times: Times, skipped: Skipped | None) -> list[Prefix | None]:
        """Make a prefix of each input, None for one that is skipped; the same images and times get the same prefix."""
        groups = self._groups(listed(images), times if times is None or is_batch(images) else [times], skipped)
        keys = [(*map(id, regions), own) for regions, own in groups]
        made = {
            key: make_prefix(join_images(*group), self._tags) if group[0] else None
            for key, group in zip(keys, groups, strict=True)
        }
        return [made[key] for key in keys]

    def _groups(
        self, inputs: Sequence[Any], times: Any, skipped: Skipped | None
    ) -> list[tuple[list[Regions], tuple[float, ...] | None]]:
        """Return the regions and times of the images of each input; the same image is the same object.

        An input that is skipped has no regions.
        """
        self.check_inputs(inputs, times)
        found = self._finder.find([images_of(one) for one in inputs], skipped)
        best = {id(regions): self._best(regions) for group in found for regions in group}
        groups = [[best[id(regions)] for regions in group] for group in found]
        own = [None] * len(groups) if times is None else map(tuple, times)
        return list(zip(groups, own, strict=True))


def rows_of(prefix: Prefix) -> int:
    """Return the rows of a prefix: its regions and its context."""
    return len(prefix.features) + len(prefix.context)


def parts_of(rows: Sequence[int], limit: int) -> list[slice]:
    """Split items with these numbers of rows into parts of at most `limit` rows and at least one item."""
    starts, total = [0], 0
    for place, count in enumerate(rows):
        if total + count > limit and place > starts[-1]:
            starts.append(place)
            total = 0
        total += count
    return [slice(*ends) for ends in pairwise([*starts, len(rows)])] if rows else []
