"""The fields of each kind of request, read from JSON or from a form.

Fields are called as in the JSON of the command line. An image is given as base64, as a file of a form, or as regions.
"""

import base64
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic import WithJsonSchema as Schema

from dimvl.errors import UserError
from dimvl.fields import LONGEST_TEXT, is_blank
from dimvl.regions.records import ARRAYS, Extractor, Regions
from dimvl.showing import short

MOST_IMAGES, MOST_TEXTS, MOST_LABELS, MOST_BEAMS = 64, 64, 1000, 16
"""The most of one request, so that none keeps the others waiting for long."""
DTYPES = {"boxes": "f4", "features": "f4", "class_ids": "i2", "attribute_ids": "i2"}
"""Of given regions; scores are float16, as the extractors return them."""


class GivenRegions(BaseModel):
    """The regions of an image, as `/regions` returns them; `extractor` is the fingerprint of what found them."""

    model_config = ConfigDict(extra="forbid")
    width: int = Field(ge=1, lt=2**32)
    height: int = Field(ge=1, lt=2**32)
    extractor: str
    boxes: list[list[float]] = Field(min_length=1)
    features: list[list[float]]
    class_ids: list[list[int]]
    class_scores: list[list[float]]
    attribute_ids: list[list[int]]
    attribute_scores: list[list[float]]
    names: list[str] = Field([], description="class of each region with its attributes, for people; not read")

    @classmethod
    def of(cls, regions: Regions, extractor: Extractor) -> Self:
        """Return the regions that an extractor found."""
        arrays = {name: array.tolist() for name, array in regions.arrays.items()}
        ids = zip(arrays["attribute_ids"], arrays["class_ids"], strict=True)
        words = [
            [
                *(extractor.attributes[one] for one in own if one >= 0),
                *(extractor.classes[one] for one in best[:1] if one >= 0),
            ]
            for own, best in ids
        ]
        names = list(map(" ".join, words))
        size = {"width": regions.width, "height": regions.height}
        return cls(**size, extractor=extractor.fingerprint, names=names, **arrays)

    def regions(self) -> Regions:
        """Return them as arrays, which `Regions.checked` has to check.

        Raises:
            UserError: the rows of an array have different lengths, or a number is too large.

        """
        try:
            arrays: dict[str, Any] = {name: np.array(getattr(self, name), DTYPES.get(name, "f2")) for name in ARRAYS}
        except (ValueError, OverflowError):
            raise UserError(
                "the regions have rows of unequal lengths or too large numbers; copy those of /regions"
            ) from None
        return Regions(image_id="of the request", width=self.width, height=self.height, **arrays)


def _image(value: Any) -> bytes | GivenRegions:
    if isinstance(value, dict):
        return GivenRegions.model_validate(value)
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            value = base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise ValueError("is not base64; encode the bytes of an image file") from None
    if not isinstance(value, bytes):
        raise ValueError("is not an image; give the bytes of its file as base64, or regions as /regions returns them")
    if not value:
        raise ValueError("is empty; give the bytes of an image file")
    return value


def _words(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"has {len(text):,} characters, more than {LONGEST_TEXT:,}; shorten it")
    if is_blank(text):
        raise ValueError("is empty; give some words")
    return text


IMAGE = "base64 of its file, or an object that /regions returned; in a form, a file"
Image = Annotated[Any, PlainValidator(_image), Schema({"type": ["string", "object"], "description": IMAGE})]
listed = BeforeValidator(lambda value: value if isinstance(value, list) else [value])  # a form's field that occurs once
Words = Annotated[str, BeforeValidator(lambda value: _words(value) if isinstance(value, str) else value)]
Texts = Words | Annotated[list[Words], Field(min_length=1, max_length=MOST_TEXTS)]
Top = Annotated[int, Field(ge=1, le=1000, description="number of results, best first")]


class Request(BaseModel):
    """What every request has: a model by its name, and one image, or several that are one input.

    Attributes of the classes:
        verbs: the abilities that it may ask for, as in `Predictor.predict`.
        second: the field with which it asks for the second of these.
        text_field: the field of a text or of several, each of which has a result.
        together: the fields that are equal in requests that are predicted in one call.
        needs_image: whether there is always an image.

    """

    model_config = ConfigDict(extra="forbid")
    verbs: ClassVar[tuple[str, ...]]
    second: ClassVar[str] = ""
    text_field: ClassVar[str] = ""
    together: ClassVar[frozenset[str]] = frozenset()
    needs_image: ClassVar[bool] = True
    model: str | None = Field(None, description="name of a model or an adapter; default: the first that can do it")
    image: Image | None = Field(None, description=IMAGE)
    images: Annotated[list[Image], listed, Field(min_length=1, max_length=MOST_IMAGES)] | None = Field(
        None, description="in place of image: several that are one input"
    )
    times: Annotated[list[float], listed] | None = Field(
        None, description="seconds of each image, for models of videos"
    )

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        given = (self.image is not None) + (self.images is not None)
        if given > 1 or (given == 0 and self.needs_image):
            raise ValueError(f"the request has {'both' if given else 'neither'} image and images; give one of them")
        return self

    @property
    def inputs(self) -> list[bytes | GivenRegions]:
        """The images."""
        return [self.image] if self.image is not None else list(self.images or [])

    @property
    def texts(self) -> list[str]:
        """The texts, one result each; a single empty one for a request without."""
        given = getattr(self, self.text_field, "")
        return given if isinstance(given, list) else [given]

    @property
    def has_list(self) -> bool:
        """Whether the texts are a list, as the results are then."""
        return isinstance(getattr(self, self.text_field, None), list)

    @property
    def verb(self) -> str:
        """The ability that it asks for."""
        return self.verbs[getattr(self, self.second, None) is not None]

    @property
    def group(self) -> Hashable:
        """Equal for requests that are predicted in one call."""
        return type(self), self.verb, self.times is None, self.model_dump_json(include={*self.together})

    @property
    def size(self) -> int:
        """About how much work it is, in images or texts."""
        return max(len(self.inputs), len(self.texts), len(getattr(self, "candidates", ())))


class Answer(Request):
    """Answer a question, or each of several."""

    verbs = ("answer",)
    text_field = "question"
    question: Texts = Field(description="one, or a list")
    top: Top = 5


class Caption(Request):
    """Describe the image in a sentence."""

    verbs = ("caption",)
    together = frozenset({"beams", "max_tokens", "length_penalty", "block_ngrams"})
    beams: int = Field(3, ge=1, le=MOST_BEAMS, description="width of the beam search; 1 is greedy")
    max_tokens: int | None = Field(None, ge=1)
    length_penalty: float | None = Field(None, ge=-10, le=10)
    block_ngrams: int | None = Field(None, ge=0, le=100)


class Match(Request):
    """Say how probable it is that a text belongs to the image, or each of several."""

    verbs = ("match",)
    text_field = "text"
    text: Texts = Field(description="one, or a list")


class Ground(Request):
    """Find the regions that a phrase refers to, or each of several."""

    verbs = ("ground",)
    text_field = "phrase"
    phrase: Texts = Field(description="one, or a list")
    top: Top = 5


class Classify(Request):
    """Choose the most probable labels: those of the model, or the given ones."""

    verbs = ("classify", "classify by labels")
    second = "labels"
    text_field = "text"
    together = frozenset({"labels", "templates"})
    labels: Annotated[list[Words], listed, Field(min_length=2, max_length=MOST_LABELS)] | None = None
    templates: Annotated[list[Words], listed, Field(min_length=1, max_length=MOST_TEXTS)] | None = None
    text: str = Field("", max_length=LONGEST_TEXT)
    top: Top = 5

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.labels is None and self.templates is not None:
            raise ValueError("templates are for labels; give labels, or omit templates")
        if self.labels is not None and self.text:
            raise ValueError("labels and a text are for different models; omit one of them")
        return self


class Choose(Request):
    """Choose the right one of several texts, with a question or without."""

    verbs = ("choose",)
    text_field = "question"
    question: str = Field("", max_length=LONGEST_TEXT)
    candidates: Annotated[list[Words], listed, Field(min_length=2, max_length=MOST_TEXTS)]


class Embed(Request):
    """Embed the image, or a text or several, as unit vectors that are compared by their products."""

    verbs = ("embed image", "embed text")
    second = text_field = "text"
    needs_image = False
    text: Texts | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if bool(self.inputs) == (self.text is not None):
            raise ValueError("the request has both an image and a text, or neither; give one of them")
        return self


class Align(Request):
    """Compare each word of a text with each region."""

    verbs = ("align",)
    text_field = "text"
    text: Words


class FindRegions(Request):
    """Find the regions of the image, to be given in place of it: later requests are then faster."""

    verbs = ("regions",)


REQUESTS: dict[str, type[Request]] = {
    "answer": Answer,
    "caption": Caption,
    "match": Match,
    "ground": Ground,
    "classify": Classify,
    "choose": Choose,
    "embed": Embed,
    "align": Align,
    "regions": FindRegions,
}
"""The kinds of requests by their path."""


def read_request(form: type[Request], given: bytes | Mapping[str, Sequence[str | bytes]]) -> Request:
    """Read a request from JSON, or from the fields of a form, of which some occur several times.

    Raises:
        UserError: any mistake in it.

    """
    try:
        if isinstance(given, bytes):
            return form.model_validate_json(given)
        return form.model_validate({name: own[0] if len(own) == 1 else list(own) for name, own in given.items()})
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """Say the first mistake."""
    every = error.errors(include_url=False)
    first = next((one for one in every if one["type"] == "value_error"), every[0])  # our own say most
    names = [part for part in first["loc"] if isinstance(part, str)]
    place = names[0] if names else "the request"
    if first["type"] == "json_invalid":
        return f"the request is not JSON ({short(first['ctx']['error'])}); send a JSON object, or a form"
    if first["type"] == "missing":
        return f"the request has no field {names[-1]!r}; add it"
    if first["type"] == "extra_forbidden":
        return f"the request has a field {short(names[-1])}, which is not known; remove it"
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
        return problem if place == "the request" else f"{place} {problem}"
    return f"{place} is {short(first['input'])}: {first['msg'].lower()}; change it as /docs says"
