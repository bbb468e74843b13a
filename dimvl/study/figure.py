"""The figure of a study: a score by the points, with a line for each setting; without points, a row for each setting.

An SVG file of its own; the same numbers give the same bytes.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dimvl.report.curves import figure_settings, line_colour, plain_axes
from dimvl.study.config import Value

INK = "#7a7f87"
"""Of text and axes: legible on white and on black."""
WIDE = 10
"""Points whose largest is this many times the smallest have a logarithmic axis."""

BESIDE = 0.012
"""Distance between the bars of two settings at one point, as a share of the axis."""


class Point(NamedTuple):
    """A mean and its interval, at a point of the study or at None."""

    x: Value | None
    mean: float
    low: float
    high: float


def study_svg(lines: Mapping[str, Sequence[Point]], x: str, score: str) -> str:
    """Draw means with their intervals.

    Args:
        lines: name of a setting -> its points.
        x: name of the horizontal axis; empty if there are no points.
        score: name of what is drawn.

    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(figure_settings("study", INK)):
        figure = Figure(figsize=(5.6, 3.4 if x else 1.0 + 0.36 * len(lines)), layout="constrained")
        axes: Any = figure.add_subplot()
        places = [float(p.x) for points in lines.values() for p in points if x and p.x is not None]
        for number, (name, points) in enumerate(lines.items()):
            means = [point.mean for point in points]
            errors = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
            style = {"color": line_colour(number), "capsize": 3, "marker": "o", "markersize": 4, "label": name}
            if x:  # side by side, so that no bar hides another
                aside = BESIDE * (number - (len(lines) - 1) / 2)
                axes.errorbar(
                    [_beside(float(p.x or 0), aside, places) for p in points],
                    means,
                    yerr=errors,
                    linewidth=1.6,
                    **style,
                )
            else:
                axes.errorbar(means, [name] * len(points), xerr=errors, linestyle="none", **style)
        _label(axes, places, x, score)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _is_wide(places: Sequence[float]) -> bool:
    return min(places) > 0 and max(places) / min(places) >= WIDE


def _beside(place: float, share: float, places: Sequence[float]) -> float:
    """Move a place by a share of the axis."""
    low, high = min(places), max(places)
    return place * math.pow(high / low, share) if _is_wide(places) else place + share * (high - low or 1)


def _label(axes: Any, places: Sequence[float], x: str, score: str) -> None:
    """Name the axes."""
    plain_axes(axes, INK, "y" if x else "x")
    if not x:
        axes.margins(y=0.15)
        axes.invert_yaxis()
        axes.set_xlabel(score)
        return
    axes.set_xlabel(x)
    axes.set_ylabel(score)
    if _is_wide(places):
        axes.set_xscale("log")
    ticks = sorted(set(places))
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="best")
