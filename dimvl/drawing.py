"""Regions drawn on images: labelled boxes, and the regions that a result depends on.

Boxes are corners x1, y1, x2, y2 in pixels of the image. The same input gives the same bytes.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from math import expm1
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dimvl.errors import UserError
from dimvl.explanation import Explanation
from dimvl.files import atomic_path
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.images import load_image
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore

Box = tuple[float, float, float, float]

BOX_COLOURS = ("#0b5fa5", "#b3261e", "#1b6e3c", "#7a2f9a", "#8a5a00", "#00696f", "#a3195b", "#3c4654")
"""Colours of the regions in turn; white text on each has a contrast ratio above 5."""

_HEAT_COLOUR = (208, 88, 24)
_VEIL = 236  # light grey
_VEIL_STRENGTH = 0.7  # opacity of the veil over cold places: the image still shows through
_DROP_COLOUR = BOX_COLOURS[4]
_MOST_LABELS = 5  # of the regions without which a result is less probable
_GAP = 8  # between the images of one input
_LINE_WIDTH = 3
_FONT_SIZE = 14


def enlarge(image: Image.Image, longest_side: int) -> tuple[Image.Image, float]:
    """Resize an image to `longest_side` pixels on its longest side; also return the factor."""
    scale = longest_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC), scale


def draw_regions(
    image: Image.Image, boxes: Sequence[Box], labels: Sequence[str], longest_side: int = 480
) -> Image.Image:
    """Draw numbered, labelled boxes on a copy of the image, enlarged to `longest_side` so that labels are legible.

    Each label goes where it hides the least of boxes and other labels, around or inside its box.
    """
    canvas, scale = enlarge(image.convert("RGB"), longest_side)
    draw = ImageDraw.Draw(canvas)
    scaled = [_clamped(box, scale, canvas.size) for box in boxes]
    for index, box in enumerate(scaled):
        x1, y1, x2, y2 = box
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white")
        draw.rectangle(box, outline=_box_colour(index), width=_LINE_WIDTH)
    numbered = {index: f"{index + 1} {label}".strip() for index, label in enumerate(labels)}
    _draw_labels(canvas, scaled, numbered, [_box_colour(index) for index in range(len(scaled))])
    return canvas


def _draw_labels(canvas: Image.Image, boxes: Sequence[Box], labels: Mapping[int, str], colours: Sequence[str]) -> None:
    """Draw labels, by index into `boxes`, in pixels of the canvas."""
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    placed: list[Box] = []
    for index, text in labels.items():
        width, height = round(draw.textlength(text, font)) + 8, _FONT_SIZE + 6
        place = _label_place(boxes[index], (width, height), canvas.size, placed, boxes)
        placed.append(place)
        draw.rectangle(place, fill=colours[index])
        draw.text((place[0] + 4, (place[1] + place[3]) / 2), text, fill="white", font=font, anchor="lm")


def draw_heat(
    image: Image.Image, boxes: Sequence[Box], heat: Mapping[int, float], longest_side: int = 240
) -> Image.Image:
    """Draw a veil over a copy of the image, thinner over hot boxes.

    Args:
        image: in any mode.
        boxes: corners in pixels of `image`.
        heat: value in [0, 1] by index into `boxes`; the hotter, the clearer the box and the stronger its frame.
        longest_side: pixels on the longest side of the result.

    """
    canvas, scale = enlarge(image.convert("RGB"), longest_side)
    pixels = np.asarray(canvas, dtype=np.float32)
    shown = np.zeros(pixels.shape[:2], dtype=np.float32)
    scaled = [(value, _clamped(boxes[index], scale, canvas.size)) for index, value in heat.items()]
    for value, (x1, y1, x2, y2) in scaled:
        window = shown[y1 : y2 + 1, x1 : x2 + 1]
        np.maximum(window, value, out=window)
    veil = (_VEIL_STRENGTH * (1 - shown))[..., None]
    mixed = pixels * (1 - veil) + _VEIL * veil
    result = Image.fromarray(np.rint(mixed).astype(np.uint8))
    draw = ImageDraw.Draw(result, "RGBA")
    for value, box in sorted(scaled):
        draw.rectangle(box, outline=(*_HEAT_COLOUR, round(255 * value)), width=_LINE_WIDTH)
    return result


def heat_of(drop: float, probability: float, logarithms: bool = False) -> float:
    """Return the square root of the share of a probability that is lost without a region, in [0, 1].

    Without the root, a tenth would hardly show. With `logarithms`, both values are log-probabilities.
    """
    share = -expm1(-max(0.0, drop)) if logarithms else max(0.0, drop) / max(probability, 1e-6)
    return float(min(1.0, share) ** 0.5)


def draw_explanation(images: Sequence[Image.Image], explanation: Explanation, longest_side: int = 640) -> Image.Image:
    """Draw what a result rests on: the more of its probability is lost without a region, the clearer the region.

    The largest drops are written beside their regions.

    Args:
        images: those of the input, in order; they stand side by side.
        explanation: of the result.
        longest_side: pixels on the longest side of each image.

    """
    panels = []
    for number, image in enumerate(images):
        own = [(place, one) for place, one in enumerate(explanation.regions) if one.image == number]
        boxes, drops = [one.box for _, one in own], [one.probability_drop for _, one in own]
        known = explanation.probability, explanation.logarithms
        heat = {index: heat_of(drop, *known) for index, drop in enumerate(drops)}
        panel = draw_heat(image, boxes, heat, longest_side)
        scaled = [_clamped(box, longest_side / max(image.size), panel.size) for box in boxes]
        largest = {
            index: f"{drops[index]:+.3f}"
            for index, (place, _) in enumerate(own)
            if place < _MOST_LABELS and drops[index] > 0
        }
        _draw_labels(panel, scaled, largest, [_DROP_COLOUR] * len(own))
        panels.append(panel)
    return side_by_side(panels)


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Join images into one, with a white gap between them."""
    whole = Image.new("RGB", (sum(p.width + _GAP for p in panels) - _GAP, max(p.height for p in panels)), "white")
    left = 0
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width + _GAP
    return whole


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG")


def png_data_uri(image: Image.Image) -> str:
    """The image as a PNG in a `data:` URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(image: Image.Image, longest_side: int) -> str:
    """The image in a `data:` URI, at most `longest_side` pixels wide and high, as JPEG of good quality."""
    shown, buffer = image.copy(), io.BytesIO()
    shown.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    shown.save(buffer, format="JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def stored_image_uri(file: Path | None, store: RegionStore, image_id: str, count: int, longest_side: int = 320) -> str:
    """Return an image with its best `count` regions of a store as a URI; empty without a file that can be read."""
    try:
        image = load_image(file) if file is not None else None
    except UserError:
        image = None
    if image is None:
        return ""
    regions = store.read(store.position(image_id))
    return png_data_uri(draw_found(image, store.extractor, regions, count, longest_side))


def draw_found(
    image: Image.Image, extractor: Extractor, regions: Regions, count: int, longest_side: int
) -> Image.Image:
    """Draw the first `count` regions that were found in an image, labelled with their attributes and class."""
    boxes = fractions_to_pixels(regions.boxes[:count], image.width, image.height).tolist()
    labels = [region_name(extractor, regions, place) for place in range(len(boxes))]
    return draw_regions(image, boxes, labels, longest_side)


def region_name(extractor: Extractor, regions: Regions, place: int) -> str:
    """Name a region by its attributes and its class; empty if it has neither."""
    attributes = [extractor.attributes[index] for index in regions.attribute_ids[place] if index >= 0]
    return " ".join([*attributes, *(extractor.classes[index] for index in regions.class_ids[place][:1] if index >= 0)])


def _box_colour(index: int) -> str:
    return BOX_COLOURS[index % len(BOX_COLOURS)]


def _clamped(box: Box, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Scale a box to whole pixels inside an image of `size`."""
    limits = (size[0] - 1, size[1] - 1) * 2
    x1, y1, x2, y2 = (min(max(round(value * scale), 0), limit) for value, limit in zip(box, limits, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _label_place(
    box: Box, size: tuple[int, int], canvas: tuple[int, int], placed: Sequence[Box], boxes: Sequence[Box]
) -> Box:
    """Choose the place around or inside a box that hides the least; labels count more than boxes."""
    x1, y1, x2, y2 = box
    width, height = size
    candidates = []
    for y in (y1 - height, y2 + 1, y1, y2 - height):
        for x in (x1, x2 - width):
            left = min(max(x, 0), max(0, canvas[0] - width))
            top = min(max(y, 0), canvas[1] - height)
            candidates.append((left, top, left + width, top + height))

    def hidden(place: Box) -> float:
        return 10 * sum(_overlap(place, other) for other in placed) + sum(_overlap(place, other) for other in boxes)

    return min(candidates, key=hidden)  # the first of equals


def _overlap(first: Box, second: Box) -> float:
    """Area of the intersection of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
