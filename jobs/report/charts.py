"""Line charts as SVG, assembled from numbers and fixed labels only."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 420, 210
LEFT, BOTTOM, TOP, RIGHT = 44, 38, 12, 20  # margins for the axes and their labels
Line = Sequence[tuple[float, float]]


class Chart(NamedTuple):
    """A chart with its title, and the names of its lines."""

    title: str
    svg: Markup
    lines: list[str]


def line_chart(title: str, lines: Mapping[str, Line], x_name: str) -> Chart | None:
    """Return a chart of lines over the same axes; None if no line has two points.

    Args:
        title: The title.
        lines: The points of each line by its name, from left to right.
        x_name: The name of the horizontal axis, a fixed label.
    """
    known = {name: _finite(line) for name, line in lines.items()}
    known = {name: line for name, line in known.items() if len(line) > 1}
    points = [point for line in known.values() for point in line]
    if not points:
        return None
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(0, min(y for _, y in points)), max(y for _, y in points)
    x_ticks, y_ticks = _ticks(x0, x1), _ticks(y0, y1)
    across = _scale(min(x0, x_ticks[0]), max(x1, x_ticks[-1]), LEFT, WIDTH - RIGHT)
    up = _scale(min(y0, y_ticks[0]), max(y1, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    parts = [
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{up(y):.1f}' y2='{up(y):.1f}'/>"
        f"<text x='{LEFT - 6}' y='{up(y) + 4:.1f}' text-anchor='end'>{y:g}</text>"
        for y in y_ticks
    ]
    parts += [
        f"<text x='{across(x):.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>{x:g}</text>"
        for x in x_ticks
    ]
    for n, line in enumerate(known.values()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f"<polyline class='line line-{n}' points='{path}'/>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{HEIGHT - 6}' text-anchor='middle'>{x_name}</text>")
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(parts)}</svg>"
    return Chart(title, Markup(svg), list(known))


def _finite(line: Line) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in line
        if isinstance(y, int | float) and math.isfinite(y) and math.isfinite(x)
    ]  # fmt: skip


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1
    return lambda value: start + (end - start) * (value - low) / span


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers that include the range."""
    span = (high - low) or abs(high) or 1
    unit = 10 ** math.floor(math.log10(span / 3))
    step = max(factor * unit for factor in (1, 2, 5) if factor * unit <= span / 3)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, last + 1)]
