"""Predictions of an export from images in a few lines of Python.

    predictor = Predictor.from_pretrained("exports/vqa")
    predictor.answer("image.png", "what color is the star?")

A tuple of images is one input; a list or any other sequence of inputs is a batch, with one result for each. The
detector, and with it torchvision, is loaded with the first image. The training code is not needed.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.answers import Answer
from dimvl.data.prefixes import Prefix, best_regions, join_images, make_prefix
from dimvl.errors import UserError
from dimvl.explanation import Alignment, Explanation, describe, without
from dimvl.export import DETECTOR, check_export, find_export
from dimvl.image_inputs import AT_ONCE, ImageInput, Input, Inputs, RegionFinder, Skipped, images_of, is_batch, listed
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.tasks import abilities_of
from dimvl.tasks.task import Ability
from dimvl.trained_model import TrainedModel, choose_device, load_model

Texts = str | Sequence[str]
Times = Sequence[float] | Sequence[Sequence[float]] | None
Rules = Any
"""A file of rules for zero-shot answers, or what `read_statements` of dimvl.tasks.answering made of one."""
Labels = Any
"""Names of classes, or what `embed_classes` of dimvl.tasks.retrieval.zero_shot made of them, to save time."""
Labelled = list[tuple[str, float]]
"""Labels with their probabilities, best first."""
Templates = Sequence[str] | None
ROWS_AT_ONCE = 2048  # rows of one forward pass; with 8192, a CPU spends a fifth of the time on memory
ROWS_CACHED = 8192  # rows of captions decoded together, including their prefixes


class CaptionOptions(TypedDict, total=False):
    """How captions are decoded, beside the width of the beam search; see `dimvl.config.DecodingOptions`."""

    max_tokens: int
    length_penalty: float
    block_ngrams: int


class Predictor:
    """A trained model with its detector.

    Args:
        trained: the model.
        detector: folder of the detector.

    """

    def __init__(self, trained: TrainedModel, detector: Path) -> None:
        self.trained = trained
        self._finder = RegionFinder(trained, detector)
        self._tags = trained.processor.tags

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto", check: bool = True) -> "Predictor":
        """Open an export.

        Args:
            name: a folder, or the name of a model on the Hugging Face hub (`owner/model`).
            device: `auto` (CUDA if available), `cpu` or `cuda`.
            check: whether to compare all files with their checksums first.

        Raises:
            UserError: it does not exist, a file is missing or damaged, or the device is not available.

        """
        folder = find_export(name)
        check_export(folder)
        return cls(load_model(folder, choose_device(device), check).for_prediction(), folder / DETECTOR)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, without its detector."""
        return self.trained.num_parameters

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
        self, files: Sequence[Path], skipped: list[tuple[Path, str]], progress: Progress | None = None
    ) -> Iterator[list[Regions]]:
        """Find the regions of many image files, in order, a few at a time while the next ones are being read.

        Args:
            files: image files; `image_id` of the regions is the path as text.
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

    def check(self, verb: str, inputs: Sequence[Input], times: Sequence[Sequence[float]] | None) -> None:
        """Refuse what `predict` refuses, before images are read: an ability, a number of images or times."""
        self._ability(verb)
        self._check_inputs(inputs, times)

    def _check_inputs(self, inputs: Sequence[Input], times: Sequence[Sequence[float]] | None) -> None:
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
        if ability.takes_text:
            raw = self._of_pairs(images, texts if texts is not None else [], ability, options, times, skipped)
        else:
            raw = self._of_images(images, ability, options, times, skipped)
        return [None if one is None else ability.result(self.trained, one, **options) for one in raw]

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, images: Input, questions: str, top: int = 5, times: Times = None, *, statements: Rules = None
    ) -> Answer: ...
    @overload
    def answer(
        self,
        images: Input | Inputs,
        questions: Texts,
        top: int = 5,
        times: Times = None,
        *,
        statements: Rules = None,
    ) -> list[Answer]: ...
    @overload
    def answer(
        self,
        images: Input | Inputs,
        questions: Texts,
        top: int = 5,
        times: Times = None,
        *,
        skipped: Skipped,
        statements: Rules = None,
    ) -> list[Answer | None]: ...
    def answer(
        self,
        images: Input | Inputs,
        questions: Texts,
        top: int = 5,
        times: Times = None,
        skipped: Skipped | None = None,
        statements: Rules = None,
    ) -> Any:
        """Answer a question about an image or a tuple of images, or several questions; two lists are taken in pairs.

        Regions are detected once per image. `top` is the number of answers to return for each question; `times` and
        `skipped` are as in `predict`. With `statements`, a file of rules or `read_statements` of one, a pretrained
        model answers by these statements; a question that no rule covers gets the empty answer.

        Raises:
            UserError: an empty question, an image that cannot be read, a model that cannot answer, or a mistake in the
                rules.

        """
        verb = "answer" if statements is None else "answer by statements"
        rules: dict[str, Any] = {} if statements is None else {"statements": statements}
        answers = self.predict(verb, images, questions, times, skipped, top=top, **rules)
        return answers[0] if isinstance(questions, str) and not is_batch(images) else answers

    @overload
    def caption(  # type: ignore[overload-overlap]
        self, images: Input, beams: int = 3, times: Times = None, **decoding: Unpack[CaptionOptions]
    ) -> str: ...
    @overload
    def caption(
        self, images: Inputs, beams: int = 3, times: Times = None, **decoding: Unpack[CaptionOptions]
    ) -> list[str]: ...
    @overload
    def caption(
        self,
        images: Inputs,
        beams: int = 3,
        times: Times = None,
        *,
        skipped: Skipped,
        **decoding: Unpack[CaptionOptions],
    ) -> list[str | None]: ...
    def caption(
        self,
        images: Input | Inputs,
        beams: int = 3,
        times: Times = None,
        skipped: Skipped | None = None,
        **decoding: Unpack[CaptionOptions],
    ) -> Any:
        """Caption an image, a tuple of images or a list, by beam search of width `beams` (1 is greedy).

        `times` and `skipped` are as in `predict`.

        Raises:
            UserError: an image that cannot be read, a model that cannot caption, or options that it does not allow.

        """
        captions = self.predict("caption", images, None, times, skipped, beams=beams, **decoding)
        return captions if is_batch(images) else captions[0]

    @overload
    def match(self, images: Input, texts: str, times: Times = None) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def match(self, images: Input | Inputs, texts: Texts, times: Times = None) -> list[float]: ...
    @overload
    def match(
        self, images: Input | Inputs, texts: Texts, times: Times = None, *, skipped: Skipped
    ) -> list[float | None]: ...
    def match(self, images: Input | Inputs, texts: Texts, times: Times = None, skipped: Skipped | None = None) -> Any:
        """Return the probability that a text belongs to an image or a tuple, or several; two lists are taken in pairs.

        `times` and `skipped` are as in `predict`.

        Raises:
            UserError: an empty text, an image that cannot be read, or a model that cannot match.

        """
        probabilities = self.predict("match", images, texts, times, skipped)
        return probabilities[0] if isinstance(texts, str) and not is_batch(images) else probabilities

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        images: Input,
        labels: Labels = None,
        top: int = 5,
        times: Times = None,
        *,
        templates: Templates = None,
        text: str = "",
    ) -> Labelled: ...
    @overload
    def classify(
        self,
        images: Input | Inputs,
        labels: Labels = None,
        top: int = 5,
        times: Times = None,
        *,
        templates: Templates = None,
        text: Texts = "",
    ) -> list[Labelled]: ...
    @overload
    def classify(
        self,
        images: Input | Inputs,
        labels: Labels = None,
        top: int = 5,
        times: Times = None,
        *,
        skipped: Skipped,
        templates: Templates = None,
        text: Texts = "",
    ) -> list[Labelled | None]: ...
    def classify(
        self,
        images: Input | Inputs,
        labels: Labels = None,
        top: int = 5,
        times: Times = None,
        skipped: Skipped | None = None,
        templates: Templates = None,
        text: Texts = "",
    ) -> Any:
        """Return the most probable labels of an image, a tuple of images or a list, with their probabilities.

        A model that was trained to classify chooses among its own labels, and takes a text about the images, if it was
        trained with texts; two lists are taken in pairs. A model that aligns images and texts needs no training on the
        labels, and takes `labels`. Each of these is put into the templates, in which `{}` stands for it; there are some
        by default. `top` is the number of labels to return; `times` and `skipped` are as in `predict`.

        Raises:
            UserError: labels that do not differ, labels and a text, an image that cannot be read, or a model that
                cannot classify in this way.

        """
        if labels is None:
            if templates is not None:
                raise UserError("templates are for labels; give labels, or omit templates")
            found = self.predict("classify", images, text, times, skipped, top=top)
            return found[0] if isinstance(text, str) and not is_batch(images) else found
        if text:
            raise UserError("a text is for models that were trained to classify, without labels; omit one of them")
        sentences: dict[str, Any] = {} if templates is None else {"templates": templates}
        found = self.predict("classify by labels", images, None, times, skipped, labels=labels, top=top, **sentences)
        return found if is_batch(images) else found[0]

    @overload
    def embed_image(self, images: Input, times: Times = None) -> np.ndarray: ...  # type: ignore[overload-overlap]
    @overload
    def embed_image(self, images: Inputs, times: Times = None) -> list[np.ndarray]: ...
    @overload
    def embed_image(self, images: Inputs, times: Times = None, *, skipped: Skipped) -> list[np.ndarray | None]: ...
    def embed_image(self, images: Input | Inputs, times: Times = None, skipped: Skipped | None = None) -> Any:
        """Embed an image, a tuple of images or a list: unit vectors (E,) float32, to be compared by their products.

        `times` and `skipped` are as in `predict`.

        Raises:
            UserError: an image that cannot be read, or a model that was not trained to align.

        """
        embedded = self.predict("embed image", images, None, times, skipped)
        return embedded if is_batch(images) else embedded[0]

    @overload
    def embed_text(self, texts: str) -> np.ndarray: ...  # type: ignore[overload-overlap]
    @overload
    def embed_text(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def embed_text(self, texts: Texts) -> Any:
        """Embed a text or several: unit vectors (E,) float32 in the space of `embed_image`.

        Raises:
            UserError: an empty text, or a model that was not trained to align.

        """
        ability = self._ability("embed text")
        words = ability.prepare(self.trained, [texts] if isinstance(texts, str) else texts)
        found = [ability.result(self.trained, one) for one in ability.apply(self.trained, None, words)] if words else []
        return found[0] if isinstance(texts, str) else found

    def align(self, image: Input, text: str, times: Sequence[float] | None = None) -> Alignment:
        """Compare each word of a text with each region of an image, or of a tuple of images.

        Raises:
            UserError: an empty text, an image that cannot be read, or a model that was not trained to align.

        """
        ability = self._ability("align")
        [(group, seconds)] = self._groups([image], None if times is None else [times], None)
        regions = join_images(group, seconds)
        words, similarities = ability.apply(
            self.trained, [make_prefix(regions, self._tags)], self.trained.tokenise([text])
        )[0]
        extractor = self.trained.processor.extractor
        described = [describe(extractor, group, regions, place, 0.0) for place in range(len(regions))]
        return Alignment(words, described, similarities)

    def explain(self, image: Input, question: str, top: int = 5, times: Sequence[float] | None = None) -> Explanation:
        """Answer a question, and return by how much the answer's probability drops without each region.

        Each region in turn is removed, together with the tags that only it has. `top` is the number of answers to
        return.

        Raises:
            UserError: as `answer`.

        """
        ability = self._ability("answer")
        words = self.trained.tokenise([question])[0]
        [(group, seconds)] = self._groups([image], None if times is None else [times], None)
        regions = join_images(group, seconds)
        fewer = [without(regions, place) for place in range(len(regions))]
        prefixes = [make_prefix(each, self._tags) for each in (regions, *fewer)]
        probabilities = ability.apply(self.trained, prefixes, [words] * len(prefixes))
        answer = ability.result(self.trained, probabilities[0], top=top)
        best = probabilities[:, int(probabilities[0].argmax())]
        drops = (best[0] - best[1:]).tolist()
        extractor = self.trained.processor.extractor
        described = [describe(extractor, group, regions, place, drop) for place, drop in enumerate(drops)]
        return Explanation(answer, sorted(described, key=lambda region: -region.probability_drop))

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
        parts = _parts([_rows(prefix) + added for prefix in prefixes], ROWS_CACHED)
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
        rows = [_rows(prefix) * new for prefix, new in zip(prefixes, [True, *is_new], strict=bool(prefixes))]
        parts = _parts([prefix + len(text) + 1 for prefix, text in zip(rows, words, strict=True)], ROWS_AT_ONCE)
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
        self._check_inputs(inputs, times)
        found = self._finder.find([images_of(one) for one in inputs], skipped)
        best = {id(regions): self._best(regions) for group in found for regions in group}
        groups = [[best[id(regions)] for regions in group] for group in found]
        own = [None] * len(groups) if times is None else map(tuple, times)
        return list(zip(groups, own, strict=True))


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
