"""The recipes of augmentation: the two of Detectron2's Mask2Former, and one without randomness.

Order and draws of the operations are those of the reference.
"""

from collections import Counter

import cv2
import numpy as np

from pipeline.data.augment.color import jitter_color
from pipeline.data.augment.resize import Window, image_window, maps_window, shortest_edge_size
from pipeline.data.batch import Truth
from pipeline.data.settings import AugmentSettings

PAD_VALUE = 128  # level of image padding before normalization; maps are padded with 0 (none)
BASE_SCALES = range(5, 21)  # sizes that `shortest_edge` chooses from, in tenths of `base`
LONGEST = 4  # largest size of the longer side, in units of `base`
CROP_TRIES = 10


def augment(
    image: np.ndarray,
    truth: Truth,
    settings: AugmentSettings,
    random: np.random.Generator,
    task: str = "panoptic",
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Augment one sample by the recipe `settings.augment`, and pad it to the size of the crop.

    Args:
        image: uint8 [h, w, 3].
        truth: The truth, with maps [L, h, w].
        settings: The recipe and its parameters.
        random: The generator to draw from; "none" does not use it.
        task: The task whose truth it is, which decides how its maps are resized.

    Returns:
        The image uint8 [3, H, W], the maps [L, H, W], and the (height, width) without padding.
    """
    rule = settings.resizes_maps_by(task)
    image, maps = RECIPES[settings.augment](image, truth, settings, random, rule)
    size = _size(image)
    return _padded_image(image, settings.crop_size), _padded(maps, settings.crop_size), size


def large_scale_jitter(
    image: np.ndarray,
    truth: Truth,
    settings: AugmentSettings,
    random: np.random.Generator,
    rule: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Flip with probability 0.5, resize to fit the crop times s ~ U(scale), and crop.

    One random number determines the offset of the crop on both axes, as in the reference.
    """
    smallest, largest = settings.scale
    flip, s, u = random.random(), random.uniform(smallest, largest), random.random()
    maps = truth.maps
    if flip < 0.5:
        image, maps = cv2.flip(image, 1), maps[:, :, ::-1]
    height, width = _fitted(image, settings.crop_size, s)
    rows, columns = _at_most((height, width), settings.crop_size)
    top, left = round((height - rows) * u), round((width - columns) * u)
    window = Window(height, width, top, left, rows, columns)
    return _cut(image, maps, window, settings.resize, rule)


def shortest_edge(
    image: np.ndarray,
    truth: Truth,
    settings: AugmentSettings,
    random: np.random.Generator,
    rule: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Resize the shorter side to a random size, crop at random, jitter the colors, and flip.

    The sizes are tenths of `base`, rounded down; a smaller one is used if the longer side would
    otherwise exceed 4 times `base`. The crop is drawn up to CROP_TRIES times until no class
    exceeds `category_max_area`.
    """
    short = int(0.1 * BASE_SCALES[random.integers(len(BASE_SCALES))] * settings.base)
    height, width = shortest_edge_size(*_size(image), short, LONGEST * settings.base)
    rows, columns = _at_most((height, width), settings.crop_size)
    for _ in range(CROP_TRIES):
        top = int(random.integers(height - rows + 1))
        left = int(random.integers(width - columns + 1))
        window = Window(height, width, top, left, rows, columns)
        maps = maps_window(truth.maps, window, rule)
        if _is_varied(truth._replace(maps=maps), settings.category_max_area):
            break
    image = jitter_color(image_window(image, window, settings.resize), random)
    if random.random() < 0.5:
        image, maps = cv2.flip(image, 1), maps[:, :, ::-1]
    return image, maps


def fit(
    image: np.ndarray, truth: Truth, settings: AugmentSettings, random: object, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """Resize the whole image to fit the crop, without randomness, as for overfitting tests."""
    height, width = _fitted(image, settings.crop_size, 1)
    window = Window(height, width, 0, 0, height, width)
    return _cut(image, truth.maps, window, settings.resize, rule)


RECIPES = {"lsj": large_scale_jitter, "shortest_edge": shortest_edge, "none": fit}


def _cut(
    image: np.ndarray, maps: np.ndarray, window: Window, backend: str, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return a window of the resized image and maps."""
    return image_window(image, window, backend), maps_window(maps, window, rule)


def _fitted(image: np.ndarray, crop: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the (height, width) that fits `scale` times the crop, rounded half to even."""
    height, width = _size(image)
    factor = min(crop[0] * scale / height, crop[1] * scale / width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _at_most(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    return min(size[0], crop[0]), min(size[1], crop[1])


def _is_varied(truth: Truth, max_area: float) -> bool:
    """Return whether every class has less than `max_area` of the labeled pixels; 1 allows all."""
    if max_area >= 1:
        return True
    areas: Counter[int] = Counter()
    counts = [np.bincount(layer.ravel()) for layer in truth.maps]
    for category, layer, value in zip(truth.categories, truth.layer, truth.value, strict=True):
        areas[category] += int(counts[layer][value]) if value < len(counts[layer]) else 0
    return max(areas.values(), default=0) < max_area * areas.total()


def _padded_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad uint8 [h, w, 3] with gray at the bottom and right: uint8 [3, *size]."""
    out = np.full((3, *size), PAD_VALUE, np.uint8)
    rows, columns = image.shape[:2]
    cv2.split(image, [plane[:rows, :columns] for plane in out])
    return out


def _padded(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad maps [L, h, w] with 0 at the bottom and right: [L, *size]."""
    if maps.shape[1:] == size:
        return np.ascontiguousarray(maps)
    out = np.zeros((len(maps), *size), maps.dtype)
    out[:, : maps.shape[1], : maps.shape[2]] = maps
    return out
