"""Pages from templates: one HTML file that needs no other, with every text escaped."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dimvl.files import atomic_path
from dimvl.report.curves import Series, curve_svg, line_colour

_ABBREVIATIONS = {"vqa", "ap50", "lm", "kl", "gb"}


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template and write the page, whole or not at all; the same values give the same bytes.

    Raises:
        UserError: the page cannot be written.

    """
    page = filled_page(template, **values)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def filled_page(template: Path, **values: Any) -> str:
    """Fill a template: it may extend `base.html.jinja`, which needs a `title`, and import from `macros.html.jinja`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": _percent, "words": words}
    return environment.get_template(template.name).render(values)


def number(value: Any) -> str:
    """Three decimals for fractions, fewer for larger numbers, both ends of an interval, words as they are."""
    if isinstance(value, list) and len(value) == 2:
        return " to ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return "not measured" if value is None else str(value)


def words(name: str) -> str:
    """A key of the results as words, abbreviations in capitals."""
    text = " ".join(part.upper() if part in _ABBREVIATIONS else part for part in re.split(r"[_/ ]+", name))
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


def drawn_curves(title: str, what: str, series: Sequence[Series], logarithmic: bool = True) -> dict[str, Any]:
    """A figure for the macro `curve`: its curves, and a line of words for each.

    Args:
        title: shown above it.
        what: describes it in words, as in "Losses of vqa".
        series: may be empty.
        logarithmic: whether the vertical axis is.

    """
    ends = [f"{words(name)} {smooth[0]:.3g} → {smooth[-1]:.3g}" for name, _, _, smooth in series]
    svg = curve_svg(series, f"{what}: {'; '.join(ends)}", logarithmic) if series else ""
    return {"title": title, "svg": svg, "keys": [(line_colour(index), end) for index, end in enumerate(ends)]}
