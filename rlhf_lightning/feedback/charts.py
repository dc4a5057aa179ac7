"""Pictures as inline SVG, without a script: points with intervals, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, MARGIN, ROW = 460, 44, 26
COLOURS = 5
"""Classes c0, c1, … of the style sheet."""


Place = Callable[[float, float], tuple[float, float]]
"""From a value's coordinates to those of the picture."""


class Point(NamedTuple):
    """A value with its interval, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A named series of points."""

    name: str
    points: Sequence[Point]


def curve_chart(title: str, x_label: str, curves: Sequence[Curve]) -> Markup:
    """Draw curves over one axis, with a vertical bar for each interval.

    Args:
        title: says what the picture shows, also to screen readers.
        x_label: below the axis.
        curves: at least one point in all.
    """
    height, bottom = 240, 200
    points = [point for curve in curves for point in curve.points]
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    x_low, x_high = _range([point.x for point in points])
    y_low, y_high = _range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + (x - x_low) / (x_high - x_low) * (WIDTH - MARGIN - 12)
        return across, bottom - (y - y_low) / (y_high - y_low) * (bottom - 14)

    parts = [_axis(place, x_low, x_high, y_low, y_high), _text(WIDTH / 2, height - 6, x_label, "middle")]
    for number, curve in enumerate(curves):
        parts.append(_curve(curve, place, f"c{number % COLOURS}"))
    legend = Markup("").join(
        Markup('<span class="key c{}">{}</span> ').format(number % COLOURS, curve.name)
        for number, curve in enumerate(curves)
    )
    return _figure(title, height, Markup("").join(parts), legend if len(curves) > 1 else Markup(""))


def interval_chart(title: str, rows: Sequence[tuple[str, Point]], middle: float | None = None) -> Markup:
    """Picture a row with a point and its interval for each name, on an axis from 0 to 1.

    Args:
        title: says what the picture shows, also to screen readers.
        rows: names, and points of which `y` and the interval count.
        middle: a value to mark, such as chance.
    """
    names, height = 170, ROW * len(rows) + 34

    def across(value: float) -> float:
        return names + max(0.0, min(1.0, value)) * (WIDTH - names - 16)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marked = "mark" if tick == middle else "grid"
        parts.append(_line(across(tick), 4, across(tick), height - 26, marked))
        parts.append(_text(across(tick), height - 8, f"{tick:g}", "middle"))
    for number, (name, point) in enumerate(rows):
        y = 4 + ROW * (number + 0.5)
        parts.append(_text(names - 10, y + 4, name if len(name) < 24 else f"{name[:22]}…", "end"))
        if point.low is not None and point.high is not None:
            parts.append(_line(across(point.low), y, across(point.high), y, "c0 whisker"))
        parts.append(_dot(across(point.y), y, "c0", f"{name}: {_said(point)}"))
    return _figure(title, height, Markup("").join(parts), Markup(""))


def _curve(curve: Curve, place: Place, colour: str) -> Markup:
    places = [place(point.x, point.y) for point in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [Markup('<polyline class="{} curve" points="{}"/>').format(colour, path)]
    for (x, y), point in zip(places, curve.points, strict=True):
        if point.low is not None and point.high is not None:
            ends = place(point.x, point.low)[1], place(point.x, point.high)[1]
            parts.append(_line(x, ends[0], x, ends[1], f"{colour} whisker"))
        parts.append(_dot(x, y, colour, f"{curve.name} at {point.x:g}: {_said(point)}"))
    return Markup("").join(parts)


def _axis(place: Place, x_low: float, x_high: float, y_low: float, y_high: float) -> Markup:
    parts = []
    for tick in _ticks(y_low, y_high, 4):
        (left, y), (right, _) = place(x_low, tick), place(x_high, tick)
        parts += [_line(left, y, right, y, "grid"), _text(left - 6, y + 4, f"{tick:g}", "end")]
    for tick in _ticks(x_low, x_high, 5, whole=True):
        x, y = place(tick, y_low)
        parts.append(_text(x, y + 16, f"{tick:g}", "middle"))
    return Markup("").join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: a little beyond the values, and never the same."""
    low, high = min(values), max(values)
    spread = (high - low) * 0.06 or max(abs(high) * 0.1, 0.1)
    return low - spread, high + spread


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Return round numbers between two ends, integers where they are to be whole.

    >>> _ticks(0.47, 0.83, 4), _ticks(0.4, 0.49, 4)
    ([0.5, 0.6, 0.7, 0.8], [0.4, 0.425, 0.45, 0.475])
    >>> _ticks(-0.1, 2.1, 5, whole=True)
    [0, 1, 2]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    if whole:
        step = max(1, math.ceil(step))
    first = math.ceil(low / step)
    return [round(place * step, 10) for place in range(first, math.floor(high / step) + 1)]


def _said(point: Point) -> str:
    interval = "" if point.low is None or point.high is None else f" ({point.low:.3f} to {point.high:.3f})"
    return f"{point.y:.3f}{interval}"


def _figure(title: str, height: float, content: Markup, legend: Markup) -> Markup:
    return Markup(
        '<figure><figcaption>{0}</figcaption><svg viewBox="0 0 {1} {2}" role="img" aria-label="{0}">{3}</svg>{4}</figure>'
    ).format(title, WIDTH, f"{height:g}", content, legend)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    ends = (f"{value:.1f}" for value in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *ends)


def _dot(x: float, y: float, kind: str, said: str) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
        kind, f"{x:.1f}", f"{y:.1f}", said
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, escape(text))
