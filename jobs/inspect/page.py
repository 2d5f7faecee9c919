"""The page of `inspect`: one HTML file that needs no other, with charts as SVG and no script."""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from shards.inspect import LARGE, SMALL, Overview

Gallery = Sequence[tuple[str, np.ndarray]]  # key, u8 RGB [H, W, 3]

WIDTH, HEIGHT = 420, 230  # of a chart
LEFT, BOTTOM, TOP, RIGHT = 52, 42, 14, 12  # room for its axes
BARS = 24  # at most in a chart
SIZES = 300  # most frequent image sizes that are drawn
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #667085; --line: #d9dee7; --bar: #3b6fd4;
  --stuff: #2f9e77; --card: #ffffff; --ground: #f4f6fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf2; --dim: #9aa5b6; --line: #343c4a;
  --bar: #7aa2f7; --stuff: #5cc9a0; --card: #1b212b; --ground: #12161d } }
body { margin: 0 auto; padding: 24px; max-width: 1400px; background: var(--ground);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 24px; margin: 8px 0 2px } h2 { font-size: 17px; margin: 28px 0 10px }
p { margin: 2px 0 14px; color: var(--dim) }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)) }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; margin: 0; overflow: hidden }
.card b { display: block; font-size: 22px } .card span, figcaption { color: var(--dim) }
figcaption { font-size: 13px; overflow-wrap: anywhere }
figure svg { width: 100%; height: auto; display: block }
figure img { width: 100%; border-radius: 6px; display: block; margin-bottom: 6px }
.gallery { columns: 300px; column-gap: 14px }
.gallery figure { break-inside: avoid; margin-bottom: 14px }
text { fill: var(--dim); font: 11px system-ui, sans-serif } .grid { stroke: var(--line) }
.bar { fill: var(--bar) } .stuff { fill: var(--stuff) } .dot { fill: var(--bar); opacity: .55 }
.scroll { max-height: 620px; overflow: auto; padding: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { position: sticky; top: 0; background: var(--card); text-align: right; font-weight: 600 }
td { text-align: right } th, td { padding: 5px 14px; border-bottom: 1px solid var(--line) }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } td svg { width: 180px; height: 12px }
i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px }
"""


def page(sets: Sequence[tuple[Overview, Gallery]]) -> str:
    """The page about shard sets, each with some of its samples drawn."""
    name = escape(", ".join(one.folder.name for one, _ in sets))
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        # nothing is loaded or run, whatever a data set's names hold
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Shard sets: {name}</title><style>{_STYLE}</style></head><body>"
        + "".join(_section(one, gallery) for one, gallery in sets)
        + "</body></html>\n"
    )


def _section(one: Overview, gallery: Gallery) -> str:
    manifest, counted = one.manifest, one.tally
    mib = sum(shard.bytes for shard in manifest.shards) / 2**20
    tiles = {
        "images": f"{manifest.samples:,}",
        "objects": f"{len(counted.areas):,}",
        "objects an image, mean": f"{counted.objects.mean():.1f}",
        "classes that occur": f"{np.count_nonzero(counted.images)} of {len(manifest.taxonomy)}",
        "images without an object": f"{np.count_nonzero(counted.objects == 0):,}",
        f"MiB in {len(manifest.shards)} shard{'s' * (len(manifest.shards) > 1)}": f"{mib:,.1f}",
    }
    charts = [_image_sizes(one.sizes)]
    if len(counted.areas):
        charts += [_per_image(counted.objects), _areas(counted.areas, one.by_size)]
    pictures = "".join(
        f"<figure><img alt='{escape(key, quote=True)} with its truth' src='{_source(picture)}'>"
        f"<figcaption>{escape(key)}</figcaption></figure>"
        for key, picture in gallery
    )
    return (
        f"<section><h1>{escape(one.folder.name)}</h1>"
        f"<p>{escape(manifest.source)}, taxonomy {escape(manifest.taxonomy.name)}; serves "
        f"{escape(', '.join(manifest.tasks))}; fingerprint {manifest.fingerprint[:12]}</p>"
        "<div class='row tiles'>"
        + "".join(
            f"<div class='card'><b>{value}</b><span>{name}</span></div>"
            for name, value in tiles.items()
        )
        + f"</div><h2>Objects and images</h2><div class='row'>{''.join(charts)}</div>"
        f"<h2>Classes</h2>{_classes(one)}"
        f"<h2>{len(gallery)} of {manifest.samples:,} samples, with their truth</h2>"
        f"<div class='gallery'>{pictures}</div></section>"
    )


def _per_image(objects: np.ndarray) -> str:
    """Histogram of the number of objects in an image."""
    step = int(objects.max()) // BARS + 1
    counts = np.bincount(objects // step)
    names = [str(n * step) if step == 1 else f"{n * step}+" for n in range(len(counts))]
    return _figure(
        "Objects an image", _bars(names, counts, "objects", "images"), "crowds are not counted"
    )


def _areas(areas: np.ndarray, by_size: tuple[int, int, int]) -> str:
    """Histogram of object sizes, a bar for each half of an octave."""
    places = np.floor(2 * np.log2(np.sqrt(np.maximum(areas, 1)))).astype(int)
    first = places.min()
    counts = np.bincount(places - first)
    names = [f"{2 ** ((first + n) / 2):.0f}" for n in range(len(counts))]
    shares = (f"{part / len(areas):.0%}" for part in by_size)
    sides = f"{int(SMALL**0.5)}, to {int(LARGE**0.5)}, above"
    caption = "small, medium, large: {}, {}, {} (side to {})".format(*shares, sides)
    return _figure("Object size", _bars(names, counts, "side, √area in px", "objects"), caption)


def _image_sizes(sizes: np.ndarray) -> str:
    """Width and height of the images, a dot for each pair, larger where there are more."""
    common = Counter(map(tuple, sizes.tolist())).most_common(SIZES)
    most = common[0][1]
    right, top = sizes.max(axis=0) * 1.08
    marks = [
        f"<circle class='dot' cx='{_x(width / right):.1f}' cy='{_y(height / top):.1f}' "
        f"r='{2.5 + 9 * (count / most) ** 0.5:.1f}'><title>{width}x{height}: {count:,} images"
        "</title></circle>"
        for (width, height), count in common
    ]
    columns = "".join(
        f"<text x='{_x(value / right):.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>"
        f"{value:,}</text>"
        for value in _ticks(right)
    )
    chart = _chart("".join(marks) + columns, top, "width, px", "height, px")
    width, height = common[0][0]
    return _figure("Image size", chart, f"most frequent: {width}x{height}, {most:,} images")


def _classes(one: Overview) -> str:
    """Every class with its counts, the most frequent first, and a bar for its images."""
    counted, categories = one.tally, one.manifest.taxonomy.categories
    most = max(int(counted.images.max()), 1)
    rows = []
    for k in np.argsort(-counted.images, kind="stable").tolist():
        category = categories[k]
        kind = "thing" if category.isthing else "stuff"
        bar = 180 * counted.images[k] / most
        rows.append(
            f"<tr><td><i style='background: rgb{tuple(map(int, category.color))}'></i>"
            f"{escape(category.name)}</td>"
            f"<td>{kind}</td><td>{counted.images[k]:,}</td>"
            f"<td><svg viewBox='0 0 180 12'><rect class='bar {kind}' width='{bar:.1f}' height='12' "
            "rx='3'/></svg></td>"
            f"<td>{counted.segments[k]:,}</td><td>{counted.instances[k]:,}</td>"
            f"<td>{one.shares[k]:.2%}</td></tr>"
        )
    heads = ("class", "kind", "images", "", "segments", "instances", "labeled pixels")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f"<div class='card scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(title: str, chart: str, caption: str) -> str:
    return f"<figure><b>{title}</b>{chart}<figcaption>{caption}</figcaption></figure>"


def _bars(names: list[str], counts: np.ndarray, across: str, upward: str) -> str:
    """Bars side by side, a name under each that has room."""
    top, width = counts.max() * 1.08, 1 / len(counts)
    every = -(-len(names) // 12)
    marks = []
    for n, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        left, high = _x(n * width), _y(count / top)
        marks.append(
            f"<rect class='bar' x='{left + 1:.1f}' y='{high:.1f}' rx='2' "
            f"width='{_x(width) - _x(0) - 2:.1f}' height='{_y(0) - high:.1f}'>"
            f"<title>{name}: {count:,} {upward}</title></rect>"
        )
        if n % every == 0:
            middle = _x((n + 0.5) * width)
            marks.append(
                f"<text x='{middle:.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>"
                f"{name}</text>"
            )
    return _chart("".join(marks), top, across, upward)


def _chart(marks: str, top: float, across: str, upward: str) -> str:
    """Marks over horizontal lines, with the names of both axes."""
    lines = "".join(
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{_y(value / top):.1f}' "
        f"y2='{_y(value / top):.1f}'/>"
        f"<text x='{LEFT - 6}' y='{_y(value / top) + 4:.1f}' text-anchor='end'>{value:,}</text>"
        for value in (0, *_ticks(top))
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{lines}{marks}"
        f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>{across}"
        f"</text><text transform='rotate(-90)' x='{-middle}' y='11' text-anchor='middle'>{upward}"
        "</text></svg>"
    )


def _ticks(top: float) -> list[int]:
    """Three to six round numbers up to `top`, 1 at least apart."""
    unit = 10 ** np.floor(np.log10(max(top / 3, 1)))
    step = int(unit * max(factor for factor in (1, 2, 5) if unit * factor <= max(top / 3, 1)))
    return list(range(step, int(top) + 1, step))


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _source(picture: np.ndarray) -> str:
    """A picture as a data URI."""
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 82))[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
