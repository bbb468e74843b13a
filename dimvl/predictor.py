"""Predictions of an export from images in a few lines of Python.

    predictor = Predictor.from_pretrained("exports/vqa")
    predictor.answer("image.png", "what color is the star?")

A tuple of images is one input; a list or any other sequence of inputs is a batch, with one result for each. The
detector, and with it torchvision, is loaded with the first image. The training code is not needed.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from dimvl.data.answers import Answer, Chosen
from dimvl.data.prefixes import join_images, make_prefix
from dimvl.encoding import Encoding, encode
from dimvl.errors import UserError
from dimvl.explanation import Alignment, Explanation, Grounding, aligned, describe, grounded, without
from dimvl.image_inputs import Input, Inputs, Skipped, is_batch
from dimvl.predictor_base import ROWS_AT_ONCE, ROWS_CACHED, PredictorBase, Texts, Times, parts_of, rows_of
from dimvl.tasks import abilities_of

Rules = Any
"""A file of rules for zero-shot answers, or what `read_statements` of dimvl.tasks.answering made of one."""
Labels = Any
"""Names of classes, or what `embed_classes` of dimvl.tasks.retrieval.zero_shot made of them, to save time."""
Labelled = list[tuple[str, float]]
"""Labels with their probabilities, best first."""
Templates = Sequence[str] | None
Candidates = Sequence[str] | Sequence[Sequence[str]]
"""The texts to choose from: for all questions, or for each."""


class CaptionOptions(TypedDict, total=False):
    """How captions are decoded, beside the width of the beam search; see `dimvl.config.DecodingOptions`."""

    max_tokens: int
    length_penalty: float
    block_ngrams: int


class Predictor(PredictorBase):
    """A trained model with its detector: what it can do, typed."""

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
    def encode(self, images: Input, times: Times = None) -> Encoding: ...  # type: ignore[overload-overlap]
    @overload
    def encode(self, images: Inputs, times: Times = None) -> list[Encoding]: ...
    @overload
    def encode(self, images: Inputs, times: Times = None, *, skipped: Skipped) -> list[Encoding | None]: ...
    def encode(self, images: Input | Inputs, times: Times = None, skipped: Skipped | None = None) -> Any:
        """Return the model's own vectors of an image and of its regions, for an image, a tuple of images or a list.

        Any model has them. Only those of `embed_image` can be compared with texts. `times` and `skipped` are as in
        `predict`.

        Raises:
            UserError: an image that cannot be read.

        """
        every = self._prefixes(images, times, skipped)
        prefixes = [prefix for prefix in every if prefix is not None]
        parts = parts_of([rows_of(prefix) for prefix in prefixes], ROWS_CACHED)
        found = (one for part in parts for one in encode(self.trained, prefixes[part]))
        encoded = [None if prefix is None else next(found) for prefix in every]
        return encoded if is_batch(images) else encoded[0]

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
            UserError: a text that is empty or has no word that the model knows, an image that cannot be read, or a
                model that was not trained to align.

        """
        ability = self._ability("align")
        [(group, seconds)] = self._groups([image], None if times is None else [times], None)
        regions = join_images(group, seconds)
        found = ability.apply(self.trained, [make_prefix(regions, self._tags)], ability.prepare(self.trained, [text]))[
            0
        ]
        return aligned(self.trained.processor.extractor, group, regions, found)

    def explain(
        self,
        image: Input,
        text: str | None = None,
        verb: str = "answer",
        times: Sequence[float] | None = None,
        **options: Any,
    ) -> Explanation:
        """Apply an ability, and return by how much the probability of its result drops without each region.

        Each region in turn is removed, together with the tags that only it has. `verb` and `options` are as in
        `predict`, such as `match`, or `choose` with `candidates`.

        Raises:
            UserError: as `predict`; or results of this ability have no probability.

        """
        ability = self._ability(verb)
        if ability.evidence is None:
            able = [name for name, one in abilities_of(self.trained.processor).items() if one.evidence is not None]
            raise UserError(
                f"{verb!r} gives no result with a probability; explain {' or '.join(able) or 'another model'}"
            )
        if ability.takes_text != (text is not None):
            raise UserError(f"{verb!r} takes {'a text; give it' if ability.takes_text else 'no text; omit it'}")
        options = dict(ability.settle(self.trained, **options))
        asked = None if text is None else ability.prepare(self.trained, [text], **options)[0]
        [(group, seconds)] = self._groups([image], None if times is None else [times], None)
        regions = join_images(group, seconds)
        fewer = [without(regions, place) for place in range(len(regions))]
        prefixes = [make_prefix(each, self._tags) for each in (regions, *fewer)]
        found = ability.evidence(self.trained, prefixes, asked, **options)
        drops = (found.probabilities[0] - found.probabilities[1:]).tolist()
        of_words = [()] * len(drops) if found.of_words is None else (found.of_words[0] - found.of_words[1:]).tolist()
        extractor = self.trained.processor.extractor
        described = [
            describe(extractor, group, regions, place, drop, words)
            for place, (drop, words) in enumerate(zip(drops, of_words, strict=True))
        ]
        described.sort(key=lambda region: -region.probability_drop)
        result = ability.result(self.trained, found.raw, **options)
        words, images = tuple(found.words), tuple(group)
        return Explanation(result, float(found.probabilities[0]), described, words, found.logarithms, images)

    @overload
    def choose(  # type: ignore[overload-overlap]
        self, images: Input, texts: str, candidates: Sequence[str], times: Times = None
    ) -> Chosen: ...
    @overload
    def choose(
        self, images: Input | Inputs, texts: Texts, candidates: Candidates, times: Times = None
    ) -> list[Chosen]: ...
    @overload
    def choose(
        self, images: Input | Inputs, texts: Texts, candidates: Candidates, times: Times = None, *, skipped: Skipped
    ) -> list[Chosen | None]: ...
    def choose(
        self,
        images: Input | Inputs,
        texts: Texts,
        candidates: Candidates,
        times: Times = None,
        skipped: Skipped | None = None,
    ) -> Any:
        """Choose the candidate that is right for a text about an image or a tuple; two lists are taken in pairs.

        `candidates` are those of every text, or a list of them for each text. A text may be empty, so that the
        candidates alone are compared. `times` and `skipped` are as in `predict`.

        Raises:
            UserError: fewer than two candidates or two that are equal, an image that cannot be read, or a model that
                cannot choose.

        """
        chosen = self.predict("choose", images, texts, times, skipped, candidates=candidates)
        return chosen[0] if isinstance(texts, str) and not is_batch(images) else chosen

    @overload
    def ground(  # type: ignore[overload-overlap]
        self, image: Input, phrases: str, top: int = 5, times: Sequence[float] | None = None
    ) -> Grounding: ...
    @overload
    def ground(
        self, image: Input, phrases: Sequence[str], top: int = 5, times: Sequence[float] | None = None
    ) -> list[Grounding]: ...
    def ground(self, image: Input, phrases: Texts, top: int = 5, times: Sequence[float] | None = None) -> Any:
        """Find the regions of an image, or of a tuple of images, that a phrase refers to, or each of several phrases.

        `top` is the number of regions to return for each phrase.

        Raises:
            UserError: an empty phrase, an image that cannot be read, or a model that was not trained to ground.

        """
        if top < 1:
            raise UserError(f"top is {top}; it must be at least 1")
        ability = self._ability("ground")
        words = self.trained.tokenise([phrases] if isinstance(phrases, str) else phrases)
        [(group, seconds)] = self._groups([image], None if times is None else [times], None)
        regions, extractor = join_images(group, seconds), self.trained.processor.extractor
        prefix, result = make_prefix(regions, self._tags), []
        parts = parts_of([rows_of(prefix) + len(text) + 1 for text in words], ROWS_AT_ONCE)
        for found in (
            one for part in parts for one in ability.apply(self.trained, [prefix] * len(words[part]), words[part])
        ):
            result.append(grounded(extractor, group, regions, found, top))
        return result[0] if isinstance(phrases, str) else result
