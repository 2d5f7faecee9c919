"""Pictures of a small painted world with their truth, for the demo and the tests.

Thing classes differ by shape alone and stuff classes by texture alone: colors, object textures,
sizes and rotations come from the same distributions for every class.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

Array = np.ndarray

THINGS = {1: "circle", 2: "square", 4: "triangle", 7: "star", 9: "ring"}
STUFF = {21: "stripes", 24: "checks", 28: "dots"}

_SUPERSAMPLE = 4
_SIZES = (0.22, 0.5)  # extent of an object, as a share of the image side
_CROWD_SIZES = (0.065, 0.09)
_TURN = (-0.35, 0.35)  # of objects, radians
_LEAST_VISIBLE = 0.75  # share of the whole shape that must stay in view
_LEAST_STUFF = 0.01  # share of the image below which a stuff region is left unlabeled
_EMPTY_SHARE, _CROWD_SHARE, _VOID_REGION_SHARE, _VOID_BORDER_SHARE = 0.08, 0.12, 0.15, 0.3


class Scene(NamedTuple):
    """One picture and its truth: `owner` holds 0 for void and n for `segments[n - 1]`."""

    image: Array  # uint8 [S, S, 3], RGB
    owner: Array  # int32 [S, S]
    segments: list[tuple[int, int]]  # (category id, iscrowd)


def paint(rng: np.random.Generator, side: int) -> Scene:
    """One picture: textured ground, perhaps a crowd, then none or 2-8 objects, front ones last."""
    canvas, ground = _paint_ground(rng, side)
    owner = np.zeros((side, side), np.int32)  # 0 = ground; objects count from 1
    objects: list[tuple[int, int]] = []
    whole = [0.0]  # pixels of each object were nothing in front of it
    if rng.random() >= _EMPTY_SHARE:
        crowded = rng.random() < _CROWD_SHARE
        if crowded:
            category = int(rng.choice(list(THINGS)))
            _paint_crowd(rng, canvas, owner, THINGS[category])
            objects.append((category, 1))
            whole.append(float(np.count_nonzero(owner)))
        for _ in range(2 + rng.binomial(3 if crowded else 6, 0.3)):
            category = int(rng.choice(list(THINGS)))
            if area := _try_object(rng, canvas, owner, THINGS[category], whole):
                objects.append((category, 0))
                whole.append(area)
    canvas *= _light(rng, side)[..., None]
    canvas += rng.uniform(1, 4) * rng.standard_normal(canvas.shape, np.float32)
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    segments = list(objects)
    for n, category in enumerate(STUFF, start=1):
        region = (owner == 0) & (ground == n)
        if np.count_nonzero(region) >= _LEAST_STUFF * side * side:
            segments.append((category, 0))
            owner[region] = len(segments)
    return Scene(image, owner, segments)


def _paint_ground(rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    """Textured regions with wavy borders around one to four sites.

    Returns the canvas float32 [S, S, 3] and a map [S, S]: 0 void, n = the n-th class of STUFF.
    """
    sites = _sites(rng)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    amplitude = (rng.uniform(0.02, 0.07, 2) * side).tolist()
    wave = (2 * np.pi / (rng.uniform(0.5, 1.1, 2) * side)).tolist()
    phase = rng.uniform(0, 2 * np.pi, 2).tolist()
    wavy_x = x + amplitude[0] * np.sin(wave[0] * y + phase[0])
    wavy_y = y + amplitude[1] * np.sin(wave[1] * x + phase[1])
    # Differences of squared distances grow by a constant per pixel across a border.
    squares = [(wavy_x - side * sx) ** 2 + (wavy_y - side * sy) ** 2 for sx, sy in sites.tolist()]
    closeness = np.stack(squares) / (-0.8 * side)
    blend = np.exp(3 * (closeness - closeness.max(0)))  # sharp, yet antialiased
    blend /= blend.sum(0)

    kinds = np.concatenate([rng.permutation(3), rng.integers(0, 3, 1)])[: len(sites)] + 1
    if len(sites) > 1 and rng.random() < _VOID_REGION_SHARE:
        kinds[0] = 0
    planes = np.zeros((3, side, side), np.float32)
    for weight, kind in zip(blend, kinds, strict=True):
        first = _color(rng, saturation=(0.08, 0.5), value=(0.35, 0.95))
        shift = rng.choice([-1, 1]) * rng.uniform(28, 55) * rng.uniform(0.7, 1.3, 3)
        change = np.clip(first + shift, 15, 245).astype(np.float32) - first
        tone = _stuff_texture(rng, int(kind), x, y)
        planes += first[:, None, None] * weight + change[:, None, None] * (weight * tone)
    ground = kinds[closeness.argmax(0)]
    if len(sites) > 1 and rng.random() < _VOID_BORDER_SHARE:
        top = np.sort(closeness, axis=0)
        ground[top[-1] - top[-2] < rng.uniform(1, 4)] = 0
    return cv2.merge(planes), ground


def _sites(rng: np.random.Generator) -> Array:
    """Centers [n, 2] of the regions in 0..1, well apart: scattered, or in a row to give bands."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.1, 0.35, 0.4, 0.15]))
    if rng.random() < 0.5:
        angle = np.pi / 2 + rng.uniform(-0.5, 0.5)
        along = (np.arange(count) + 0.5 + rng.uniform(-0.2, 0.2, count)) / count - 0.5
        return 0.5 + along[:, None] * np.array([np.cos(angle), np.sin(angle)])
    while True:
        sites = rng.uniform(0.05, 0.95, (count, 2))
        gaps = np.hypot(*(sites[:, None] - sites).T) + 2 * np.eye(count)
        if gaps.min() > 0.35:
            return sites


def _stuff_texture(rng: np.random.Generator, kind: int, x: Array, y: Array) -> Array:
    """Tone [S, S] in 0..1 of a plain void ground (0), stripes (1), checks (2) or dots (3)."""
    side = len(x)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.07, 0.12) * side
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    if kind == 0:
        return (x * cos + y * sin) / (2 * side) + 0.5
    pace = 2 * np.pi / period * (0.7 if kind == 2 else 1)
    u = (pace * cos) * x + (pace * sin) * y + rng.uniform(0, 6)
    v = (pace * cos) * y - (pace * sin) * x + rng.uniform(0, 6)
    match kind:
        case 1:
            wave = np.sin(u)
        case 2:
            wave = np.sin(u) * np.sin(v)
        case _:
            wave = np.cos(u) + np.cos(v) - 0.9
    return np.clip(0.5 + wave * (period / (2 * np.pi)), 0, 1)  # one pixel from tone to tone


def _try_object(
    rng: np.random.Generator, canvas: Array, owner: Array, shape: str, whole: list[float]
) -> float:
    """Paint one object where it hides no other too much.

    `whole` holds the whole area of object n at n. Returns this object's, in pixels; 0 where none
    of 20 places would do.
    """
    side = len(owner)
    for _ in range(20):
        size = side * np.exp(rng.uniform(*np.log(_SIZES)))
        polygons = _place(shape, rng.uniform(0.05, 0.95, 2) * side, size, rng.uniform(*_TURN))
        cover = _coverage(polygons, side)
        mask, area = cover >= 0.5, _area(polygons)
        left = np.bincount(owner[~mask], minlength=len(whole))
        if (
            np.count_nonzero(mask) >= 0.7 * area
            and (left[1:] >= _LEAST_VISIBLE * np.array(whole[1:])).all()
        ):
            _paint_object(rng, canvas, cover, polygons, size)
            owner[mask] = len(whole)
            return area
    return 0.0


def _paint_crowd(rng: np.random.Generator, canvas: Array, owner: Array, shape: str) -> None:
    """Many small objects of one shape, close together, all owned by object 1."""
    side = len(owner)
    size = side * rng.uniform(*_CROWD_SIZES)
    center = rng.uniform(0.3, 0.7, 2) * side
    grid = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-3, 4)), -1).reshape(-1, 2) * 1.15
    grid = grid[np.argsort(np.hypot(*(grid * rng.uniform(0.7, 1.3, 2)).T))[: rng.integers(10, 19)]]
    for spot in center + size * (grid + rng.uniform(-0.25, 0.25, grid.shape)):
        polygons = _place(shape, spot, size, rng.uniform(*_TURN))
        cover = _coverage(polygons, side)
        _paint_object(rng, canvas, cover, polygons, size)
        owner[cover >= 0.5] = 1


def _unit_outline(shape: str) -> list[Array]:
    """Closed outlines [n, 2] of a shape about one unit wide around 0; a second one is a hole."""
    match shape:
        case "circle":
            return [_corners(48, 0.5)]
        case "square":
            return [_corners(4, 0.62)]
        case "triangle":
            return [_corners(3, 0.62)]
        case "star":
            points = _corners(10, 0.6)
            points[1::2] *= 0.42
            return [points]
        case "ring":
            return [_corners(48, 0.5), _corners(32, 0.25)]
    raise ValueError(f"no shape {shape!r}")


def _corners(count: int, radius: float) -> Array:
    angle = np.arange(count) * 2 * np.pi / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _place(shape: str, center: Array, size: float, angle: float) -> list[Array]:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [center + size * outline @ turn for outline in _unit_outline(shape)]


def _area(polygons: list[Array]) -> float:
    areas = [cv2.contourArea(p.astype(np.float32)) for p in polygons]
    return areas[0] - sum(areas[1:])


def _coverage(polygons: list[Array], side: int) -> Array:
    """Share of each pixel inside the polygons (even-odd): float32 [S, S] in 0..1."""
    points = np.concatenate(polygons)
    x0, y0 = np.clip(np.floor(points.min(0)), 0, side - 1).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(points.max(0)), 1, side).astype(int).tolist()
    shift, corner = 4, (x0, y0)
    scaled = [((p - corner) * _SUPERSAMPLE - 0.5) * (1 << shift) for p in polygons]
    fine = np.zeros(((y1 - y0) * _SUPERSAMPLE, (x1 - x0) * _SUPERSAMPLE), np.uint8)
    cv2.fillPoly(fine, [np.rint(p).astype(np.int32) for p in scaled], 255, shift=shift)
    cover = np.zeros((side, side), np.float32)
    cover[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return cover / 255


def _paint_object(
    rng: np.random.Generator, canvas: Array, cover: Array, polygons: list[Array], size: float
) -> None:
    """Lay one object and its soft shadow over `canvas`, in place; its looks ignore the shape."""
    side = len(canvas)
    low, high = polygons[0].min(0) - 0.15 * size, polygons[0].max(0) + 0.15 * size
    x0, y0, x1, y1 = np.clip([*np.floor(low), *np.ceil(high)], 0, side).astype(int)
    area, cover = canvas[y0:y1, x0:x1], cover[y0:y1, x0:x1]
    drop = np.float32([[1, 0, 0.03 * size], [0, 1, 0.05 * size]])
    shadow = cv2.warpAffine(cover, drop, cover.shape[::-1])
    area *= 1 - 0.4 * cv2.GaussianBlur(shadow, (0, 0), max(0.035 * size, 0.6))[..., None]

    first, second = (_color(rng, saturation=(0.3, 0.95), value=(0.4, 1.0)) for _ in range(2))
    angle, (cx, cy) = rng.uniform(0, 2 * np.pi), polygons[0].mean(0)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / size
    match rng.choice(3, p=[0.5, 0.3, 0.2]):
        case 0:  # plain
            tone = np.zeros_like(u)
        case 1:  # shaded
            tone = np.clip(u + 0.5, 0, 1) * 0.6
        case _:  # speckled
            tone = (rng.random(u.shape, np.float32) < 0.25) * 0.5
    area += cover[..., None] * (first + (second - first) * tone[..., None] - area)


def _color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Array:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.float32(rgb) * 255


def _light(rng: np.random.Generator, side: int) -> Array:
    """A gentle slope of brightness over the picture: float32 [S, S] around 1."""
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = rng.uniform(-0.1, 0.1, 2)
    return (1 + across * ramp[None] + down * ramp[:, None]).astype(np.float32)
