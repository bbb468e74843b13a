"""The ground truth of a synthetic scene: its objects and their positions.

Images, boxes, captions and questions are all made from a `World`. It depends on (seed, split, index) alone, so each can
be made without the others. Some combinations of shape and colour are held out: only the compositional split has them,
so neither detector nor model sees them in training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dimvl.errors import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (244, 140, 30),
    "yellow": (242, 214, 48),
    "green": (46, 150, 62),
    "cyan": (66, 200, 212),
    "blue": (44, 82, 204),
    "purple": (138, 56, 168),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")

HELD_OUT_COMBINATIONS = tuple(zip(SHAPES, ("yellow", "cyan", "red", "blue", "green"), strict=True))

SPLITS = ("train", "heldout", "compositional")
"""The splits written to disk; a fourth one, `detector`, has scenes for training the detector."""

_FIRST_ID = {"train": 1_000_000, "heldout": 2_000_000, "compositional": 3_000_000, "detector": 10_000_000}
_FIRST_OF_STORIES = 3_000_000  # added to these for the images of stories
_MAX_IMAGES = 1_000_000  # up to here the ids of the written splits are distinct
FEWEST_IMAGES = 10
"""Images that a split needs for statements about several of them."""

_REFERENCE_SIDE = 160
_EXTENTS = {"small": (22.0, 28.0), "large": (40.0, 52.0)}  # longest side of the box, pixels in an image of 160
_LARGEST_TILT = {"circle": 0.0, "square": 14.0, "triangle": 20.0, "star": 30.0, "cross": 14.0}  # degrees
_REPEAT_SHARE = 0.3  # of objects that copy the shape (and as many the colour) of an earlier one, for counts above 1
_PLAIN_SHARE = 0.4
_HELD_OUT_SHARE = 0.4  # of the other objects in a compositional scene
_PLACES_TRIED = 40


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Amount and difficulty of the scenes.

    Attributes:
        seed: random seed.
        image_size: side of the square images, pixels.
        min_objects: minimum number of objects in a scene.
        max_objects: maximum number of objects in a scene.
        noise: standard deviation of the pixel noise, of 255.
        clutter: number of background marks (grey lines and specks) per image.
        max_overlap: largest share of an object that later objects may cover.
        train: number of training images.
        heldout: number of held-out images: new scenes of known combinations.
        compositional: number of compositional images: each scene has a held-out combination.
        captions_per_image: number of captions per image, all different.
        questions_per_image: number of questions per image, cycling through the kinds.
        statements_per_image: number of statements about two or three images, in groups of four; see statements.py.
        phrases_per_image: number of phrases that describe one object, cycling through the kinds; see references.py.
        noisy_captions: share of the captions that are made noisy, in a file of their own; see dimvl/data/noise.py.
        images_per_story: one story, a sequence of images of its own, for so many images of a split; 0 writes none.

    Raises:
        UserError: a value is out of range.

    """

    seed: int = 0
    image_size: int = 160
    min_objects: int = 2
    max_objects: int = 5
    noise: float = 5.0
    clutter: int = 8
    max_overlap: float = 0.3
    train: int = 3000
    heldout: int = 300
    compositional: int = 300
    captions_per_image: int = 5
    questions_per_image: int = 10
    statements_per_image: int = 0
    phrases_per_image: int = 0
    images_per_story: int = 0
    noisy_captions: float = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "seed": (0, 2**31 - 1),
            "image_size": (160, 256),
            "min_objects": (2, 6),
            "max_objects": (self.min_objects, 6),
            "noise": (0, 40),
            "clutter": (0, 60),
            "max_overlap": (0, 0.5),
            **dict.fromkeys(SPLITS, (0, _MAX_IMAGES)),
            "captions_per_image": (1, 10),
            "questions_per_image": (1, 50),
            "statements_per_image": (0, 40),
            "phrases_per_image": (0, 20),
            "images_per_story": (0, 1000),
            "noisy_captions": (0, 1),
        }
        for name, (lowest, highest) in bounds.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise UserError(f"{name} is {value}; give a value from {lowest} to {highest}")
        if self.statements_per_image % 4:
            raise UserError(f"statements_per_image is {self.statements_per_image}; give a multiple of 4")
        for split in SPLITS:
            if self.statements_per_image and 0 < getattr(self, split) < FEWEST_IMAGES:
                raise UserError(
                    f"{split} is {getattr(self, split)}, too few to choose images for statements; give 0 or at least "
                    f"{FEWEST_IMAGES}, or statements_per_image 0"
                )

    def stories(self, split: str) -> int:
        """Return the number of stories of a split."""
        return int(getattr(self, split)) // self.images_per_story if self.images_per_story else 0


@dataclass(frozen=True)
class SceneObject:
    """One object; shape, colour, size and texture are words of `SHAPES`, `COLOURS`, `SIZES` and `TEXTURES`.

    Attributes:
        centre: centre of the box, pixels (x, y).
        extent: longest side of the box, pixels.
        tilt: clockwise rotation, degrees.
        box: x1, y1, x2, y2 of the whole object in pixels, including covered parts.
        visible: share of the object that no later object covers.

    """

    shape: str
    colour: str
    size: str
    texture: str
    centre: tuple[float, float]
    extent: float
    tilt: float
    box: tuple[float, float, float, float]
    visible: float = 1.0

    @property
    def is_held_out(self) -> bool:
        """Whether shape and colour are a held-out combination."""
        return (self.shape, self.colour) in HELD_OUT_COMBINATIONS


@dataclass(frozen=True)
class World:
    """One scene: image width and height in pixels, and the objects in drawing order (later ones over earlier ones)."""

    image_id: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "World":
        """Return the world that `to_json` described."""
        objects = tuple(
            SceneObject(**{**item, "centre": tuple(item["centre"]), "box": tuple(item["box"])})
            for item in record["objects"]
        )
        return cls(record["image_id"], record["width"], record["height"], objects)


def generator_for(options: SceneOptions, image_id: int, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose (world, picture, captions, questions) of one image."""
    return np.random.default_rng([options.seed, image_id, *purpose.encode()])


def outline(shape: str, centre: tuple[float, float], extent: float, tilt: float) -> np.ndarray:
    """Return the corners (n, 2) of a shape in pixels; its box is centred on `centre`, with longest side `extent`."""
    angles, radii = _CORNERS[shape]
    turned = angles + math.radians(tilt)
    points = np.stack([np.cos(turned) * radii, np.sin(turned) * radii], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) * (extent / (high - low).max()) + np.asarray(centre)


def _polar(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(points, dtype=np.float64).T
    return np.arctan2(y, x), np.hypot(x, y)


def _regular(corners: int, radii: tuple[float, ...] = (1.0,)) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(corners) * (2 * math.pi / corners) - math.pi / 2, np.resize(radii, corners)


_ARM = 0.36  # half the width of the cross's arms, as a share of half their length
_CORNERS = {
    "circle": _regular(48),
    "square": _polar([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _regular(3),
    "star": _regular(10, (1.0, 0.45)),
    "cross": _polar(
        [
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ]
    ),
}


def sample_world(options: SceneOptions, split: str, index: int) -> World:
    """Return the scene of image `index` of `split` (train, heldout, compositional or detector).

    Only compositional scenes have held-out combinations, each at least one.
    """
    image_id = _FIRST_ID[split] + index
    return random_world(options, split, image_id, generator_for(options, image_id, "world"))


def random_world(options: SceneOptions, split: str, image_id: int, generator: np.random.Generator) -> World:
    """Return a scene of random objects as in images of `split`."""
    while True:
        objects = _place(_sample_kinds(options, split, generator), options, generator)
        if objects is not None:
            return World(image_id, options.image_size, options.image_size, objects)


def first_id_of_story(split: str, index: int) -> int:
    """Return the id of the first image of a story; the next ones follow, and no two stories share an image."""
    return _FIRST_ID[split] + _FIRST_OF_STORIES + 10 * index


def with_new_object(world: World, options: SceneOptions, generator: np.random.Generator) -> World | None:
    """Return the world with one more random object on top; None if no place for it is found.

    Its shape and colour are no held-out combination.
    """
    kind = _sample_kind(
        [(item.shape, item.colour, item.size, item.texture) for item in world.objects], False, generator
    )
    for _ in range(_PLACES_TRIED):
        added = with_objects(world, [*world.objects, _sample_object(kind, options, generator)], options)
        if added is not None:
            return added
    return None


def with_objects(world: World, items: Sequence[SceneObject], options: SceneOptions) -> World | None:
    """Return the world with other objects, in drawing order; None if one is covered by more than `max_overlap`."""
    masks = [_mask(item, world.width) for item in items]
    objects = []
    for place, (item, mask) in enumerate(zip(items, masks, strict=True), start=1):
        area = np.count_nonzero(mask)
        left = np.count_nonzero(mask & ~np.logical_or.reduce([np.zeros_like(mask), *masks[place:]]))
        if left < (1 - options.max_overlap) * area:
            return None
        objects.append(replace(item, visible=round(float(left / area), 3)))
    return replace(world, objects=tuple(objects))


def moved(item: SceneObject, x: float, y: float) -> SceneObject:
    """Return an object with its centre elsewhere, pixels."""
    centre = (round(x, 2), round(y, 2))
    return replace(item, centre=centre, box=_box(item.shape, centre, item.extent, item.tilt))


def _sample_kinds(options: SceneOptions, split: str, generator: np.random.Generator) -> list[tuple[str, str, str, str]]:
    """Return shape, colour, size and texture of each object."""
    count = int(generator.integers(options.min_objects, options.max_objects + 1))
    held_out = np.zeros(count, dtype=bool)
    if split == "compositional":
        held_out = generator.random(count) < _HELD_OUT_SHARE
        held_out[generator.integers(count)] = True
    kinds: list[tuple[str, str, str, str]] = []
    for is_held_out in held_out:
        kinds.append(_sample_kind(kinds, bool(is_held_out), generator))
    return kinds


def _sample_kind(
    earlier: list[tuple[str, str, str, str]], held_out: bool, generator: np.random.Generator
) -> tuple[str, str, str, str]:
    shape, colour = _sample_pair(earlier, held_out, generator)
    size = SIZES[generator.integers(len(SIZES))]
    texture = TEXTURES[0] if generator.random() < _PLAIN_SHARE else TEXTURES[generator.integers(1, len(TEXTURES))]
    return shape, colour, size, texture


def _sample_pair(
    earlier: list[tuple[str, str, str, str]], held_out: bool, generator: np.random.Generator
) -> tuple[str, str]:
    if held_out:
        pairs = [kind[:2] for kind in earlier if kind[:2] in HELD_OUT_COMBINATIONS]
        if not pairs or generator.random() >= _REPEAT_SHARE:
            return HELD_OUT_COMBINATIONS[generator.integers(len(HELD_OUT_COMBINATIONS))]
        return pairs[0]
    colours = tuple(COLOURS)
    while True:
        shape, colour = SHAPES[generator.integers(len(SHAPES))], colours[generator.integers(len(colours))]
        if earlier and generator.random() < _REPEAT_SHARE:
            shape = earlier[generator.integers(len(earlier))][0]
        if earlier and generator.random() < _REPEAT_SHARE:
            colour = earlier[generator.integers(len(earlier))][1]
        if (shape, colour) not in HELD_OUT_COMBINATIONS:
            return shape, colour


def _place(
    kinds: list[tuple[str, str, str, str]], options: SceneOptions, generator: np.random.Generator
) -> tuple[SceneObject, ...] | None:
    """Place the objects so that none is covered by more than `max_overlap`; None if that fails."""
    side = options.image_size
    objects: list[SceneObject] = []
    masks: list[np.ndarray] = []  # visible pixels of each object, (height, width) bool
    areas: list[int] = []
    for kind in kinds:
        for _ in range(_PLACES_TRIED):
            item = _sample_object(kind, options, generator)
            mask = _mask(item, side)
            left = [int(np.count_nonzero(other & ~mask)) for other in masks]
            if all(rest >= (1 - options.max_overlap) * area for rest, area in zip(left, areas, strict=True)):
                break
        else:
            return None
        objects.append(item)
        masks = [other & ~mask for other in masks] + [mask]
        areas.append(int(np.count_nonzero(mask)))
    shares = [round(np.count_nonzero(mask) / area, 3) for mask, area in zip(masks, areas, strict=True)]
    return tuple(replace(item, visible=float(share)) for item, share in zip(objects, shares, strict=True))


def _sample_object(
    kind: tuple[str, str, str, str], options: SceneOptions, generator: np.random.Generator
) -> SceneObject:
    """Return an object of a kind anywhere in the image."""
    shape, _, size, _ = kind
    side = options.image_size
    extent = round(float(generator.uniform(*_EXTENTS[size])) * side / _REFERENCE_SIDE, 2)
    tilt = round(float(generator.uniform(-1, 1)) * _LARGEST_TILT[shape], 1)
    x, y = (round(float(value), 2) for value in generator.uniform(extent / 2 + 1, side - extent / 2 - 1, 2))
    return SceneObject(*kind, (x, y), extent, tilt, _box(shape, (x, y), extent, tilt))


def _box(shape: str, centre: tuple[float, float], extent: float, tilt: float) -> tuple[float, float, float, float]:
    points = outline(shape, centre, extent, tilt)
    x1, y1, x2, y2 = (round(float(value), 2) for value in (*points.min(axis=0), *points.max(axis=0)))
    return x1, y1, x2, y2


def _mask(item: SceneObject, side: int) -> np.ndarray:
    """Return the pixels of an object's outline, (side, side) bool."""
    points = outline(item.shape, item.centre, item.extent, item.tilt)
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).polygon([(x - 0.5, y - 0.5) for x, y in points.tolist()], fill=1)
    return np.asarray(image)
