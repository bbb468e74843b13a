"""Pictures of the report: regions drawn on an image, what an answer looked at, curves of losses.

Boxes are corners x1, y1, x2, y2 in pixels of the picture given. The same input gives the same bytes.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dimvl.errors import UserError

Box = tuple[float, float, float, float]

BOX_COLOURS = ("#0b5fa5", "#b3261e", "#1b6e3c", "#7a2f9a", "#8a5a00", "#00696f", "#a3195b", "#3c4654")
"""One colour per region, in turn; white text on each has a contrast of more than 5."""

LINE_COLOURS = ("#2f7fb8", "#d0743c", "#3d9970", "#a25fb5", "#c2527f", "#9a8a35", "#6b7f96", "#c94f4f")
"""Curves, in turn: mid tones that read on white and on black."""

_HEAT_COLOUR = (208, 88, 24)
_VEIL = 236  # light grey
_VEIL_STRENGTH = 0.7  # share of the veil where nothing was looked at: the picture still shows through
_LINE_WIDTH = 3
_FONT_SIZE = 14
_INK = "#010203"  # stands for the page's own text colour, put in after drawing
_SMOOTHING = 15  # a running mean covers at most one part in so many of a curve


def enlarge(picture: Image.Image, longest_side: int) -> tuple[Image.Image, float]:
    """Resize so that the longest side has `longest_side` pixels; also return the factor."""
    scale = longest_side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC), scale


def draw_regions(
    picture: Image.Image, boxes: Sequence[Box], labels: Sequence[str], longest_side: int = 480
) -> Image.Image:
    """Draw numbered, labelled boxes on a copy whose longest side has `longest_side` pixels, so that labels are legible.

    Labels take the place near their box that hides least of boxes and other labels.
    """
    canvas, scale = enlarge(picture.convert("RGB"), longest_side)
    draw = ImageDraw.Draw(canvas)
    scaled = [_clamped(box, scale, canvas.size) for box in boxes]
    for index, box in enumerate(scaled):
        x1, y1, x2, y2 = box
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white")
        draw.rectangle(box, outline=_box_colour(index), width=_LINE_WIDTH)
    font = ImageFont.load_default(_FONT_SIZE)
    placed: list[Box] = []
    for index, (box, label) in enumerate(zip(scaled, labels, strict=True)):
        text = f"{index + 1} {label}".strip()
        width, height = round(draw.textlength(text, font)) + 8, _FONT_SIZE + 6
        place = _label_place(box, (width, height), canvas.size, placed, scaled)
        placed.append(place)
        draw.rectangle(place, fill=_box_colour(index))
        draw.text((place[0] + 4, (place[1] + place[3]) / 2), text, fill="white", font=font, anchor="lm")
    return canvas


def draw_heat(
    picture: Image.Image, boxes: Sequence[Box], heat: Mapping[int, float], longest_side: int = 240
) -> Image.Image:
    """Veil a copy of the picture but for the boxes that mattered.

    Args:
        picture: any mode.
        boxes: corners in pixels of `picture`.
        heat: share in [0, 1] by index into `boxes`; the hotter, the clearer the box and the stronger its frame.
        longest_side: of the result, in pixels.

    """
    canvas, scale = enlarge(picture.convert("RGB"), longest_side)
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


def png_data_uri(picture: Image.Image) -> str:
    """The picture as a PNG inside a `data:` address."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Series(NamedTuple):
    """One loss of one run.

    Attributes:
        name: as logged.
        steps: (n,) optimiser steps.
        values: (n,) mean loss per target, as logged.
        smooth: (n,) running mean of `values`, over fewer at both ends.

    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    smooth: np.ndarray


def read_losses(path: Path) -> list[Series]:
    """Read the losses of a run's `log.jsonl`; reports in which an objective had no target do not count for it.

    Raises:
        UserError: the file is missing or is no such log.

    """
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            report = json.loads(line)
            if "validation" in report:
                continue
            for name, value in report["losses"].items():
                if report["counts"][name.partition("/")[0]]:
                    points.setdefault(name, []).append((report["step"], value))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the training that writes it") from None
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the log of a run ({error!r}); check that it is the right file") from None
    result = []
    for name, pairs in points.items():
        steps, values = (np.array(column) for column in zip(*pairs, strict=True))
        result.append(Series(name, steps, values, _running_mean(values, len(values) // (2 * _SMOOTHING))))
    return result


def loss_svg(series: Sequence[Series], label: str) -> str:
    """Curves on a logarithmic axis as an `<svg>` element for an HTML page; takes on the page's text colour.

    Args:
        series: drawn in `LINE_COLOURS`, in turn: the running mean, and pale behind it the values as logged.
        label: says in words what is seen, for those who do not see it; HTML-escaped already.

    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    settings: Any = {
        "svg.hashsalt": label,  # ids are the same every time and differ between figures
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, steps, values, smooth) in enumerate(series):
            colour = line_colour(index)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, linewidth=1.8, solid_capstyle="round")
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", length=0)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_alpha(0.4)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline_svg(buffer.getvalue(), label)


def line_colour(index: int) -> str:
    """Colour of the curve with that index."""
    return LINE_COLOURS[index % len(LINE_COLOURS)]


def _inline_svg(example: str, label: str) -> str:
    """Strip an SVG file to what belongs in an HTML page: no namespaces, metadata or names of groups."""
    _, _, body = example.partition("<svg")
    attributes, _, content = body.partition(">")
    view_box = re.search(r'viewBox="[^"]*"', attributes)
    assert view_box, "matplotlib writes a viewBox"
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    content = re.sub(r'<g id="[^"]*"', "<g", content).replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{label}" {view_box.group()}>{content}'


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over `reach` values before and after each, as far as there are any."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _box_colour(index: int) -> str:
    return BOX_COLOURS[index % len(BOX_COLOURS)]


def _clamped(box: Box, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Scale a box to whole pixels inside a picture of `size`."""
    limits = (size[0] - 1, size[1] - 1) * 2
    x1, y1, x2, y2 = (min(max(round(value * scale), 0), limit) for value, limit in zip(box, limits, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _label_place(
    box: Box, size: tuple[int, int], canvas: tuple[int, int], placed: Sequence[Box], boxes: Sequence[Box]
) -> Box:
    """Choose among the places around and inside a box the one that hides least; labels weigh more than boxes."""
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
    """Area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
