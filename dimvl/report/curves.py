"""The numbers of a training run as curves: read from its log, drawn as SVG. The same log gives the same bytes."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.checkpoints import read_log
from dimvl.errors import UserError

LINE_COLOURS = ("#2f7fb8", "#d0743c", "#3d9970", "#a25fb5", "#c2527f", "#9a8a35", "#6b7f96", "#c94f4f")
"""Colours of the curves in turn: mid tones, legible on white and on black."""

_INK = "#010203"  # placeholder for the page's text colour, replaced after drawing
_SMOOTHING = 15  # the running mean covers at most 1/15 of a curve


class Series(NamedTuple):
    """One number of one run, such as a loss.

    Attributes:
        name: as logged.
        steps: (n,) optimiser steps.
        values: (n,) as logged; of a loss, its mean per target.
        smooth: (n,) running mean of `values`; its window is cut at both ends.

    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    smooth: np.ndarray


def read_losses(path: Path) -> list[Series]:
    """Read the losses of a run's `log.jsonl`, without the reports in which an objective had no target.

    Raises:
        UserError: the file is missing or is not the log of a run.

    """

    def losses(report: dict[str, Any]) -> dict[str, float]:
        found = {} if "validation" in report else report["losses"]
        return {name: value for name, value in found.items() if report["counts"][name.partition("/")[0]]}

    return [
        Series(name, steps, values, _running_mean(values, len(values) // (2 * _SMOOTHING)))
        for name, steps, values in _logged(path, losses)
    ]


def read_scores(path: Path) -> list[Series]:
    """Read the validation scores of a run's `log.jsonl`, and their parts where there are some; not smoothed.

    Raises:
        UserError: as `read_losses`.

    """

    def scores(record: dict[str, Any]) -> dict[str, float]:
        return {"score": record["validation"], **record.get("validation_parts", {})} if "validation" in record else {}

    return [Series(name, steps, values, values) for name, steps, values in _logged(path, scores)]


def _logged(
    path: Path, numbers: Callable[[dict[str, Any]], Mapping[str, float]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, steps and values of each number that is in the lines of a log."""
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        for record in read_log(path):
            for name, value in numbers(record).items():
                points.setdefault(name, []).append((record["step"], float(value)))
    except (AttributeError, ValueError, KeyError, TypeError) as error:  # a line of an older version has no checksum
        raise UserError(f"{path} is not the log of a run ({error!r}); check that it is the right file") from None
    for name, pairs in points.items():
        steps, values = (np.array(column) for column in zip(*pairs, strict=True))
        yield name, steps, values


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of each value and up to `reach` values before and after it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    first, end = np.maximum(indices - reach, 0), np.minimum(indices + reach + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def line_colour(index: int) -> str:
    """Colour of the curve with this index."""
    return LINE_COLOURS[index % len(LINE_COLOURS)]


def curve_svg(series: Sequence[Series], label: str, logarithmic: bool = True) -> str:
    """Draw curves as an `<svg>` element in the text colour of its page.

    Args:
        series: drawn in `LINE_COLOURS`: the running mean, and in a pale tone the values as logged.
        label: describes the curves in words, for readers who do not see them.
        logarithmic: whether the vertical axis is.

    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    with matplotlib.rc_context(figure_settings(label, _INK)):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, steps, values, smooth) in enumerate(series):
            axes.plot(steps, values, color=line_colour(index), alpha=0.25, linewidth=0.8)
            marker = "o" if len(steps) == 1 else None  # a line needs two points
            axes.plot(steps, smooth, marker=marker, color=line_colour(index), linewidth=1.8, solid_capstyle="round")
        if logarithmic:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        plain_axes(axes, _INK)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue(), label)


def figure_settings(salt: str, ink: str) -> Any:
    """Return matplotlib's settings of a figure: text stays text, ids are the same every time and differ by the salt."""
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    return {**settings, **dict.fromkeys(coloured, ink)}


def plain_axes(axes: Any, ink: str, grid: str = "y") -> None:
    """Leave of the axes the line below, and pale lines across one of them."""
    axes.tick_params(which="both", length=0)
    axes.grid(axis=grid, color=ink, alpha=0.12, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_alpha(0.4)


def inline_svg(file: str, label: str) -> str:
    """Reduce an SVG file to what belongs in an HTML page: without namespaces, metadata and names of groups."""
    attributes, _, content = file.partition("<svg")[2].partition(">")
    view_box = re.search(r'viewBox="[^"]*"', attributes)
    assert view_box, "matplotlib writes a viewBox"
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    content = re.sub(r'<g id="[^"]*"', "<g", content).replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{escape(label)}" {view_box.group()}>{content}'
