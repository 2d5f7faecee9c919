"""Synthetic pictures with exact truth, for the demo and the tests.

Thing classes differ by shape alone and stuff classes by texture alone: colors, object textures,
sizes, and rotations have the same distributions for every class, so that a network cannot score
without learning shapes and textures.

The order of the calls of the random generator is part of the data: a change of it changes every
picture.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

from jobs.demo.geometry import Array, area_of, coverage, outlines

THINGS = {1: "circle", 2: "square", 4: "triangle", 7: "star", 9: "ring"}
STUFF = {21: "stripes", 24: "checks", 28: "dots"}

_SIZES = (0.22, 0.5)  # extent of an object, as a fraction of the image side
_CROWD_SIZES = (0.065, 0.09)
_ANGLES = (-0.35, 0.35)  # rotation of objects, radians
_MIN_VISIBLE = 0.75  # fraction of an object that objects in front of it must leave visible
_MIN_INSIDE = 0.7  # fraction of an object that must be inside the image
_MIN_STUFF = 0.01  # fraction of the image; a smaller stuff region stays unlabeled
_ATTEMPTS = 20  # positions tried for an object

# Fractions of the pictures with no object, a crowd, an unlabeled region, and unlabeled borders.
_EMPTY, _CROWDED, _VOID_REGION, _VOID_BORDER = 0.08, 0.12, 0.15, 0.3


class Scene(NamedTuple):
    """One picture and its truth.

    Attributes:
        image: RGB, uint8 `[S, S, 3]`.
        owner: int32 `[S, S]`; 0 for void and n for `segments[n - 1]`.
        segments: Category id and iscrowd of each segment.
    """

    image: Array
    owner: Array
    segments: list[tuple[int, int]]


def paint(rng: np.random.Generator, side: int) -> Scene:
    """Paint one picture of `side` x `side` pixels.

    Its layers from back to front: a textured ground, in some pictures a crowd, and 2 to 8 objects
    (in some pictures none).
    """
    canvas, ground = _paint_ground(rng, side)
    owner = np.zeros((side, side), np.int32)  # 0 = ground; objects count from 1
    objects: list[tuple[int, int]] = []
    areas = [0.0]  # pixels of each object if it were not occluded; index 0 is the ground
    if rng.random() >= _EMPTY:
        crowded = rng.random() < _CROWDED
        if crowded:
            category = int(rng.choice(list(THINGS)))
            _paint_crowd(rng, canvas, owner, THINGS[category])
            objects.append((category, 1))
            areas.append(float(np.count_nonzero(owner)))
        for _ in range(2 + rng.binomial(3 if crowded else 6, 0.3)):
            category = int(rng.choice(list(THINGS)))
            if area := _try_object(rng, canvas, owner, THINGS[category], areas):
                objects.append((category, 0))
                areas.append(area)
    canvas *= _light(rng, side)[..., None]
    canvas += rng.uniform(1, 4) * rng.standard_normal(canvas.shape, np.float32)
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    segments = list(objects)
    for n, category in enumerate(STUFF, start=1):
        region = (owner == 0) & (ground == n)
        if np.count_nonzero(region) >= _MIN_STUFF * side * side:
            segments.append((category, 0))
            owner[region] = len(segments)
    return Scene(image, owner, segments)


def _paint_ground(rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    """Paint one to four textured regions with wavy borders.

    A region is the cell of one site in a Voronoi diagram over distorted coordinates. A softmax
    over the closeness to the sites blends the regions at their borders (antialiasing).

    Returns:
        The canvas, float32 `[S, S, 3]`, and the class map, int `[S, S]`: 0 for void and n for the
        n-th class of STUFF.
    """
    sites = _sites(rng)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    amplitude = (rng.uniform(0.02, 0.07, 2) * side).tolist()
    wave = (2 * np.pi / (rng.uniform(0.5, 1.1, 2) * side)).tolist()
    phase = rng.uniform(0, 2 * np.pi, 2).tolist()
    wavy_x = x + amplitude[0] * np.sin(wave[0] * y + phase[0])
    wavy_y = y + amplitude[1] * np.sin(wave[1] * x + phase[1])
    # Squared distances, because their difference grows linearly across a border: the blend then has
    # the same width at every border.
    squares = [(wavy_x - side * sx) ** 2 + (wavy_y - side * sy) ** 2 for sx, sy in sites.tolist()]
    closeness = np.stack(squares) / (-0.8 * side)
    blend = np.exp(3 * (closeness - closeness.max(0)))
    blend /= blend.sum(0)

    kinds = np.concatenate([rng.permutation(3), rng.integers(0, 3, 1)])[: len(sites)] + 1
    if len(sites) > 1 and rng.random() < _VOID_REGION:
        kinds[0] = 0
    planes = np.zeros((3, side, side), np.float32)
    for weight, kind in zip(blend, kinds, strict=True):
        first = _color(rng, saturation=(0.08, 0.5), value=(0.35, 0.95))
        shift = rng.choice([-1, 1]) * rng.uniform(28, 55) * rng.uniform(0.7, 1.3, 3)
        change = np.clip(first + shift, 15, 245).astype(np.float32) - first
        tone = _stuff_texture(rng, int(kind), x, y)
        planes += first[:, None, None] * weight + change[:, None, None] * (weight * tone)
    ground = kinds[closeness.argmax(0)]
    if len(sites) > 1 and rng.random() < _VOID_BORDER:
        top = np.sort(closeness, axis=0)
        ground[top[-1] - top[-2] < rng.uniform(1, 4)] = 0
    return cv2.merge(list(planes)), ground


def _sites(rng: np.random.Generator) -> Array:
    """Return the sites of the regions in 0..1, `[n, 2]`: scattered, or in a row, which gives bands.

    Scattered sites are drawn again until they are at least 0.35 apart.
    """
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
    """Return the texture of a region as tones in 0..1, float32 `[S, S]`.

    Args:
        rng: The generator of angle, period, and phase.
        kind: 0 a plain slope (void), 1 stripes, 2 checks, 3 dots.
        x: Column of each pixel, `[S, S]`.
        y: Row of each pixel, `[S, S]`.
    """
    side = len(x)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.07, 0.12) * side
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    if kind == 0:
        return (x * cos + y * sin) / (2 * side) + 0.5
    frequency = 2 * np.pi / period * (0.7 if kind == 2 else 1)
    u = (frequency * cos) * x + (frequency * sin) * y + rng.uniform(0, 6)
    v = (frequency * cos) * y - (frequency * sin) * x + rng.uniform(0, 6)
    match kind:
        case 1:
            wave = np.sin(u)
        case 2:
            wave = np.sin(u) * np.sin(v)
        case _:
            wave = np.cos(u) + np.cos(v) - 0.9
    return np.clip(0.5 + wave * (period / (2 * np.pi)), 0, 1)  # edges one pixel wide


def _try_object(
    rng: np.random.Generator, canvas: Array, owner: Array, shape: str, areas: list[float]
) -> float:
    """Paint one object at a random position that leaves enough of every other object visible.

    Args:
        rng: The generator of size, position, and rotation.
        canvas: The picture, changed in place, float32 `[S, S, 3]`.
        owner: The object of each pixel, changed in place, int32 `[S, S]`.
        shape: One of THINGS.
        areas: Unoccluded area of each object n at index n.

    Returns:
        The unoccluded area of the new object in pixels; 0 if no position was found, and then
        nothing is painted.
    """
    side = len(owner)
    for _ in range(_ATTEMPTS):
        size = side * np.exp(rng.uniform(*np.log(_SIZES)))
        polygons = outlines(shape, rng.uniform(0.05, 0.95, 2) * side, size, rng.uniform(*_ANGLES))
        cover = coverage(polygons, side)
        mask, area = cover >= 0.5, area_of(polygons)
        visible = np.bincount(owner[~mask], minlength=len(areas))
        if (
            np.count_nonzero(mask) >= _MIN_INSIDE * area
            and (visible[1:] >= _MIN_VISIBLE * np.array(areas[1:])).all()
        ):
            _paint_object(rng, canvas, cover, polygons, size)
            owner[mask] = len(areas)
            return area
    return 0.0


def _paint_crowd(rng: np.random.Generator, canvas: Array, owner: Array, shape: str) -> None:
    """Paint many small objects of one shape close together; all of them are object 1."""
    side = len(owner)
    size = side * rng.uniform(*_CROWD_SIZES)
    center = rng.uniform(0.3, 0.7, 2) * side
    grid = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-3, 4)), -1).reshape(-1, 2) * 1.15
    grid = grid[np.argsort(np.hypot(*(grid * rng.uniform(0.7, 1.3, 2)).T))[: rng.integers(10, 19)]]
    for position in center + size * (grid + rng.uniform(-0.25, 0.25, grid.shape)):
        polygons = outlines(shape, position, size, rng.uniform(*_ANGLES))
        cover = coverage(polygons, side)
        _paint_object(rng, canvas, cover, polygons, size)
        owner[cover >= 0.5] = 1


def _paint_object(
    rng: np.random.Generator, canvas: Array, cover: Array, polygons: list[Array], size: float
) -> None:
    """Paint one object and its soft shadow onto `canvas`, in place.

    Colors and texture do not depend on the shape.
    """
    side = len(canvas)
    low, high = polygons[0].min(0) - 0.15 * size, polygons[0].max(0) + 0.15 * size
    x0, y0, x1, y1 = np.clip([*np.floor(low), *np.ceil(high)], 0, side).astype(int)
    area, cover = canvas[y0:y1, x0:x1], cover[y0:y1, x0:x1]
    offset = np.array([[1, 0, 0.03 * size], [0, 1, 0.05 * size]], np.float32)
    shadow = cv2.warpAffine(cover, offset, cover.shape[::-1])
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
    """Return a color of any hue, RGB in 0..255, float32 `[3]`."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32) * 255


def _light(rng: np.random.Generator, side: int) -> Array:
    """Return a slight linear slope of brightness over the picture, float32 `[S, S]` around 1."""
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = rng.uniform(-0.1, 0.1, 2)
    return (1 + across * ramp[None] + down * ramp[:, None]).astype(np.float32)
