"""Regions and results as HTML, which notebooks show by `_repr_html_`.

Names, answers and ids come from files of others: all text is escaped and cut short, images are made small, and of many
regions the first are shown.

Shapes: R regions.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from dimvl.errors import UserError
from dimvl.showing import visible

MOST_ROWS = 20
_MOST_LETTERS = 80
_LONGEST_SIDE = 400  # pixels
_BOX = "position:absolute;box-sizing:border-box;border:2px solid #e8590c;outline:1px solid #fff"
_NUMBER = "background:#c2410c;color:#fff;font:11px/1 sans-serif;padding:0 3px"


def safe(value: object) -> str:
    """Return a value as HTML: numbers rounded, text visible, cut and escaped."""
    text = f"{value:.3f}" if isinstance(value, float) else visible(str(value))
    return escape(text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…")


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of the first `MOST_ROWS` rows."""
    lines = [f"<tr>{''.join(f'<td>{safe(value)}</td>' for value in row)}</tr>" for row in rows[:MOST_ROWS]]
    more = f"<p>and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><tr>{''.join(f'<th>{safe(name)}</th>' for name in names)}</tr>{''.join(lines)}</table>{more}"


def picture(
    image: object,
    size: tuple[int, int],
    boxes: np.ndarray,
    titles: Sequence[str],
    opacity: Sequence[float] | None = None,
) -> str:
    """Return an image with its numbered regions; the pointer over one shows its title.

    Args:
        image: what `image_from` takes.
        size: its width and height in pixels, upright.
        boxes: (R, 4) corners as fractions of width and height.
        titles: of the regions.
        opacity: of the regions, from 0 to 1; all are clear without it.

    Returns:
        Nothing if the image is None, cannot be read any more, or has another size by now.

    """
    if image is None:
        return ""
    from dimvl.regions.images import image_from  # PIL is not needed before

    try:
        pixels = image_from(image, "the image")
    except UserError:
        return ""
    if pixels.size != size:
        return ""
    pixels.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=85)
    address = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    parts = [f'<img alt="" style="width:100%" src="{address}">']
    clear = [1.0] * len(titles) if opacity is None else opacity
    for number, (box, title, shown) in enumerate(zip(boxes.clip(0, 1).tolist(), titles, clear, strict=True), start=1):
        if number > MOST_ROWS:
            break
        x1, y1, x2, y2 = (100 * value for value in box)
        place = f"left:{x1:.1f}%;top:{y1:.1f}%;width:{x2 - x1:.1f}%;height:{y2 - y1:.1f}%;opacity:{shown:.2f}"
        parts.append(f'<div title="{safe(title)}" style="{_BOX};{place}"><span style="{_NUMBER}">{number}</span></div>')
    width = round(_LONGEST_SIDE * size[0] / max(size))
    frame = f"position:relative;display:inline-block;width:{width}px;max-width:100%;line-height:0;margin-right:8px"
    return f'<div style="{frame}">{"".join(parts)}</div>'
