"""Pictures of segmentations: fills, contours, and class names over the image."""

import colorsys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import find_objects

from pipeline.pictures.regions import Region
from shards.format.taxonomy import Taxonomy

LEAST_SIDE = 256  # pixels; smaller pictures are enlarged, so that names can be read
LONGEST_ENLARGED = 2048  # pixels of the longer side up to which a thin picture is enlarged
_WIDEST = 4  # a picture on a sheet is enlarged up to this ratio of its width to the row's height
_THING_OPACITY, _STUFF_OPACITY = 0.46, 0.34
_LABELED_SHARE = 0.2  # the largest share of the picture that names cover
_LEAST_LABELED = 0.002  # the smallest share of the picture for which a segment gets a name

Box = tuple[int, int, int, int]  # x0, y0, x1, y1
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def overlay(
    image: np.ndarray, ids: np.ndarray, regions: Sequence[Region], taxonomy: Taxonomy
) -> np.ndarray:
    """Draw regions over a picture.

    Regions of one class differ in shade. The largest regions get their names first, and no name
    covers another.

    Args:
        image: RGB `uint8 [H, W, 3]`.
        ids: Integer map `[H, W]` of the regions' ids; pixels with 0 stay uncovered.
        regions: The regions to draw.
        taxonomy: The names and colors of the classes.

    Returns:
        RGB `uint8 [H', W', 3]`, where H' and W' are H and W times the same whole number.

    Raises:
        ValueError: The map and the picture differ in size.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"the picture has the size {image.shape[:2]}, but its map has {ids.shape}")
    factor = _factor(*ids.shape)
    shown, count = [], Counter[int]()
    boxes = find_objects(ids) if factor == 1 else []  # enlarged edges need their surroundings
    whole = slice(0, ids.shape[0] * factor), slice(0, ids.shape[1] * factor)
    for region in regions:
        color = taxonomy.categories[region.category].color
        shade = _shade(color, count[region.category])
        count[region.category] += 1
        box = (boxes[region.id - 1] if region.id <= len(boxes) else None) if boxes else whole
        if box and (drawn := _Drawn(ids, region, shade, box, factor)).mask().any():
            shown.append(drawn)

    canvas = enlarge(image)
    for drawn in shown:
        thing = taxonomy.things[drawn.region.category]
        opacity = _THING_OPACITY if thing else _STUFF_OPACITY
        part, old = canvas[drawn.box], np.arange(256)[None, :, None]
        table = np.rint((1 - opacity) * old + opacity * np.array(drawn.shade)).astype(np.uint8)
        np.copyto(part, cv2.LUT(part, table), where=drawn.mask()[..., None])
    line = max(1, round(min(canvas.shape[:2]) / 300))
    for drawn in sorted(shown, key=lambda d: taxonomy.things[d.region.category]):  # things on top
        contours, _ = cv2.findContours(
            drawn.mask().astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=drawn.start
        )
        cv2.drawContours(canvas, contours, -1, drawn.shade, line, cv2.LINE_AA)
    return _label(canvas, shown, taxonomy)


class _Drawn(NamedTuple):
    """A region that is drawn, and the box around it in the picture.

    Its mask is computed when it is needed, because those of a large picture do not fit in memory.
    """

    ids: np.ndarray
    region: Region
    shade: Color
    box: tuple[slice, slice]
    factor: int

    @property
    def start(self) -> tuple[int, int]:
        """The first column and the first row of the box."""
        return self.box[1].start, self.box[0].start

    def mask(self) -> np.ndarray:
        """Return the mask inside the box, `bool [h, w]`."""
        ids = self.ids[self.box] if self.factor == 1 else self.ids
        return _enlarged(ids == self.region.id, self.factor)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return a picture, RGB `uint8 [H, W, 3]`, at the size at which `overlay` draws it."""
    height, width = image.shape[:2]
    factor = _factor(height, width)
    return cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)


def _factor(height: int, width: int) -> int:
    wanted = -(-LEAST_SIDE // min(height, width))
    return max(1, min(wanted, LONGEST_ENLARGED // max(height, width)))


def side_by_side(captions: Sequence[str], *rows: Sequence[np.ndarray]) -> np.ndarray:
    """Arrange rows of pictures under captions on a white sheet.

    Pictures are scaled to the height of the tallest in their row, unless they are very wide, and
    centered in their cell.

    Args:
        captions: The caption of each column.
        rows: Pictures, each RGB `uint8 [H, W, 3]`.

    Returns:
        RGB `uint8 [H, W, 3]`.

    Raises:
        ValueError: The number of pictures in a row is not the number of captions.
    """
    gap = 12
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    scaled = [
        [_enlarged_to(picture, height) for picture in row]
        for row, height in zip(rows, heights, strict=True)
    ]
    widths = [max(picture.shape[1] for picture in column) for column in zip(*scaled, strict=True)]
    lefts = np.cumsum([gap, *(width + gap for width in widths)]).tolist()
    size = max(14, round(min(widths) / 18))
    head = gap + round(1.5 * size)
    tops = np.cumsum([head, *(height + gap for height in heights)]).tolist()
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for left, width, caption in zip(lefts[:-1], widths, captions, strict=True):
        middle = left + width / 2, (head + gap / 2) / 2
        draw.text(middle, caption, (40, 40, 40), _font(size), anchor="mm")
    for top, height, row in zip(tops[:-1], heights, scaled, strict=True):
        for left, width, picture in zip(lefts[:-1], widths, row, strict=True):
            down, right = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
            sheet.paste(Image.fromarray(picture), (left + right, top + down))
    return np.asarray(sheet)


def grid(
    captions: Sequence[str], samples: Sequence[Sequence[np.ndarray]], per_row: int
) -> np.ndarray:
    """Arrange the pictures of samples, `per_row` samples per row; fill the last row with white.

    Args:
        captions: The caption of each picture of a sample.
        samples: The pictures of each sample, each RGB `uint8 [H, W, 3]`.
        per_row: The number of samples per row.

    Returns:
        RGB `uint8 [H, W, 3]`.
    """
    blank = [np.full_like(picture, 255) for picture in samples[-1]]
    full = [*samples, *[blank] * (-len(samples) % per_row)]
    rows = [list(chain.from_iterable(full[n : n + per_row])) for n in range(0, len(full), per_row)]
    return side_by_side([*captions] * per_row, *rows)


def shrink(image: np.ndarray, ids: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image and its id map so that the longer side has at most `side` pixels.

    Args:
        image: RGB `uint8 [H, W, 3]`.
        ids: Integer map `[H, W]`.
        side: The maximum length of the longer side.

    Returns:
        The image and the map, which holds no other ids than before.
    """
    factor = min(side / max(ids.shape), 1)
    size = [max(round(length * factor), 1) for length in reversed(ids.shape)]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image, cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _enlarged(mask: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a mask, `bool [H, W]`, by a whole factor, with smooth edges."""
    if factor == 1:
        return mask
    height, width = mask.shape
    smooth = cv2.resize(mask.astype(np.float32), (width * factor, height * factor))
    return smooth > 0.5


def _shade(color: Color, nth: int) -> Color:
    """Return the color of the nth segment of a class: the class's color, then similar ones."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    step = (0, 1, -1, 2, -2)[nth % 5]
    value = min(1.0, max(0.25, value * (1 - 0.13 * abs(step))))
    red, green, blue = colorsys.hsv_to_rgb((hue + 0.022 * step) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _label(canvas: np.ndarray, shown: Sequence[_Drawn], taxonomy: Taxonomy) -> np.ndarray:
    """Write names on plates in the colors of their segments; leave out names that do not fit."""
    height, width = canvas.shape[:2]
    areas = [np.count_nonzero(drawn.mask()) for drawn in shown]
    order = sorted(range(len(shown)), key=lambda n: -areas[n])
    size = int(np.clip(round(min(height, width) / 30), 12, 40))
    font, pad = _font(size), round(0.3 * size)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    taken: list[Box] = []
    covered = 0
    for n in order:
        if areas[n] < _LEAST_LABELED * height * width:
            break
        region = shown[n].region
        text = taxonomy.names[region.category] + (" crowd" if region.iscrowd else "")
        plate = round(draw.textlength(text, font)) + 2 * pad, round(1.3 * size)
        box = _free_box(shown[n], (height, width), plate, taken)
        if box is None or covered + plate[0] * plate[1] > _LABELED_SHARE * height * width:
            continue
        taken.append(box)
        covered += plate[0] * plate[1]
        x0, y0, x1, y1 = box
        color = shown[n].shade
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius=pad, fill=color)
        draw.text(((x0 + x1) / 2, (y0 + y1) / 2), text, _ink(color), font, anchor="mm")
    return np.asarray(picture)


def _free_box(
    drawn: _Drawn, size: tuple[int, int], plate: tuple[int, int], taken: Sequence[Box]
) -> Box | None:
    """Return the first box that lies in the picture and overlaps no other plate, or None.

    The middle of the segment is tried first if most of the segment stays visible, then the boxes
    above, below, and beside the segment. The middle is the pixel that is farthest from the edge,
    because the centroid of a ring or a crescent can lie outside of the segment.

    Args:
        drawn: The segment.
        size: Height and width of the picture.
        plate: Width and height of the plate.
        taken: The boxes of the plates so far.
    """
    mask, (left, top) = drawn.mask(), drawn.start
    height, width = size
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    middle_y, middle_x = np.unravel_index(depth.argmax(), depth.shape)
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    x, y = x + left, y + top
    centers: list[tuple[float, float]] = []
    centers += [(x + w / 2, y - plate[1] / 2 - 1), (x + w / 2, y + h + plate[1] / 2 + 1)]
    centers += [(x + w + plate[0] / 2 + 1, y + h / 2), (x - plate[0] / 2 - 1, y + h / 2)]
    if plate[0] * plate[1] < 0.35 * np.count_nonzero(mask):
        centers.insert(0, (int(middle_x) - 1 + left, int(middle_y) - 1 + top))
    for center_x, center_y in centers:
        x0 = round(min(max(center_x - plate[0] / 2, 0), width - plate[0]))
        y0 = round(center_y - plate[1] / 2)
        box = x0, y0, x0 + plate[0], y0 + plate[1]
        inside = min(box) >= 0 and box[2] <= width and box[3] <= height
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(color: Color) -> Color:
    """Return white or near black, so that the contrast on `color` is about 3:1 or more (WCAG 2)."""
    luminance = float(np.dot((np.array(color) / 255) ** 2.2, (0.2126, 0.7152, 0.0722)))
    return (20, 20, 20) if luminance > 0.28 else (255, 255, 255)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _enlarged_to(picture: np.ndarray, row_height: int) -> np.ndarray:
    """Enlarge a picture to the height of its row, unless it would become too wide."""
    height, width = picture.shape[:2]
    factor = max(1, min(row_height / height, _WIDEST * row_height / width))
    if factor == 1:
        return picture
    size = round(width * factor), round(height * factor)
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
