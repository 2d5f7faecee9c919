"""Charts of a shard set as SVG.

The SVG is assembled from numbers and fixed labels only, never from the names in a data set, so
that it may be marked as safe for the template.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from shards.inspect import LARGE, SMALL

WIDTH, HEIGHT = 420, 230  # of a chart
LEFT, BOTTOM, TOP, RIGHT = 52, 42, 14, 12  # margins for the axes and their labels
MAX_BARS = 24
MAX_SIZES = 300  # how many of the most frequent image sizes are drawn
MAX_LABELS = 12  # below the bars of a histogram


class Chart(NamedTuple):
    """A chart with its title and caption."""

    title: str
    svg: Markup
    caption: str


def objects_per_image(objects: np.ndarray) -> Chart:
    """Return a histogram of the number of objects per image.

    Args:
        objects: Number of objects in each image, int `[N]`.
    """
    step = int(objects.max()) // MAX_BARS + 1
    counts = np.bincount(objects // step)
    labels = [str(n * step) if step == 1 else f"{n * step}+" for n in range(len(counts))]
    svg = _bars(labels, counts, "objects", "images")
    return Chart("Objects per image", svg, "crowds are not counted")


def object_sizes(areas: np.ndarray, by_size: tuple[int, int, int]) -> Chart:
    """Return a histogram of object sizes with one bar per half octave of the side length.

    Args:
        areas: Area of each object in pixels, `[M]`.
        by_size: Number of small, medium, and large objects.
    """
    half_octaves = np.floor(2 * np.log2(np.sqrt(np.maximum(areas, 1)))).astype(int)
    first = half_octaves.min()
    counts = np.bincount(half_octaves - first)
    labels = [f"{2 ** ((first + n) / 2):.0f}" for n in range(len(counts))]
    small, medium, large = (f"{count / len(areas):.0%}" for count in by_size)
    caption = (
        f"small (side below {int(SMALL**0.5)} px) {small}, medium {medium}, "
        f"large (from {int(LARGE**0.5)} px) {large}"
    )
    return Chart("Object size", _bars(labels, counts, "side, √area in px", "objects"), caption)


def image_sizes(sizes: np.ndarray) -> Chart:
    """Return a chart of widths and heights, with larger dots for more frequent pairs.

    Args:
        sizes: Width and height of each image, int `[N, 2]`.
    """
    frequent = Counter(map(tuple, sizes.tolist())).most_common(MAX_SIZES)
    (top_width, top_height), most = frequent[0]
    right, top = sizes.max(axis=0) * 1.08
    dots = [
        f"<circle class='dot' cx='{_x(width / right):.1f}' cy='{_y(height / top):.1f}' "
        f"r='{2.5 + 9 * (count / most) ** 0.5:.1f}'><title>{width}x{height}: {count:,} images"
        "</title></circle>"
        for (width, height), count in frequent
    ]
    labels = [_label_below(_x(value / right), f"{value:,}") for value in _ticks(right)]
    svg = _axes("".join(dots + labels), top, "width, px", "height, px")
    caption = f"most frequent: {top_width}x{top_height}, {most:,} images"
    return Chart("Image size", svg, caption)


def _bars(labels: Sequence[str], counts: np.ndarray, x_name: str, y_name: str) -> Markup:
    """Draw a histogram, with a label below every bar or, if they are many, every n-th one."""
    top, width = counts.max() * 1.08, 1 / len(counts)
    stride = -(-len(labels) // MAX_LABELS)
    marks = []
    for n, (label, count) in enumerate(zip(labels, counts.tolist(), strict=True)):
        left, high = _x(n * width), _y(count / top)
        marks.append(
            f"<rect class='bar' x='{left + 1:.1f}' y='{high:.1f}' rx='2' "
            f"width='{_x(width) - _x(0) - 2:.1f}' height='{_y(0) - high:.1f}'>"
            f"<title>{label}: {count:,} {y_name}</title></rect>"
        )
        if n % stride == 0:
            marks.append(_label_below(_x((n + 0.5) * width), label))
    return _axes("".join(marks), top, x_name, y_name)


def _axes(marks: str, top: float, x_name: str, y_name: str) -> Markup:
    """Draw `marks` over horizontal grid lines from 0 to `top`, with the names of both axes."""
    lines = "".join(
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{_y(value / top):.1f}' "
        f"y2='{_y(value / top):.1f}'/>"
        f"<text x='{LEFT - 6}' y='{_y(value / top) + 4:.1f}' text-anchor='end'>{value:,}</text>"
        for value in (0, *_ticks(top))
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return Markup(
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{lines}{marks}"
        f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>{x_name}"
        f"</text><text transform='rotate(-90)' x='{-middle}' y='11' text-anchor='middle'>{y_name}"
        "</text></svg>"
    )


def _label_below(x: float, text: str) -> str:
    return f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>{text}</text>"


def _ticks(top: float) -> list[int]:
    """Return three to six round numbers up to `top`, at least 1 apart."""
    unit = 10 ** np.floor(np.log10(max(top / 3, 1)))
    step = int(unit * max(factor for factor in (1, 2, 5) if unit * factor <= max(top / 3, 1)))
    return list(range(step, int(top) + 1, step))


def _x(fraction: float) -> float:
    return LEFT + fraction * (WIDTH - LEFT - RIGHT)


def _y(fraction: float) -> float:
    return HEIGHT - BOTTOM - fraction * (HEIGHT - BOTTOM - TOP)
