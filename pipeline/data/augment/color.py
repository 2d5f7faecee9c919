"""The color jitter of SSD (arXiv 1512.02325), as Detectron2's Mask2Former applies it.

Every operation maps each level of a channel to another one, so it is a table of 256 entries that
`cv2.LUT` applies to the whole image.
"""

import cv2
import numpy as np

BRIGHTNESS = 32  # largest change, in levels
CONTRAST = SATURATION = (0.5, 1.5)  # range of the factor
HUE = 18  # largest change, of OpenCV's 180

_LEVELS = np.arange(256)


def jitter_color(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Apply each of four operations with probability 0.5; each clips and truncates its result.

    Brightness comes first. Contrast, saturation and hue follow in this order, or with probability
    0.5 in the order saturation, hue, contrast.

    Args:
        image: uint8 [H, W, 3], RGB.
        random: The generator to draw from.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    if random.random() < 0.5:
        image = cv2.LUT(image, _table(1, random.uniform(-BRIGHTNESS, BRIGHTNESS)))
    operations = [_contrast, _saturation, _hue]
    if random.random() < 0.5:
        operations = [_saturation, _hue, _contrast]
    for operation in operations:
        if random.random() < 0.5:
            image = operation(image, random)
    return image


def _contrast(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return cv2.LUT(image, _table(random.uniform(*CONTRAST)))


def _saturation(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _in_hsv(image, 1, _table(random.uniform(*SATURATION)))


def _hue(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _in_hsv(image, 0, ((_LEVELS + random.integers(-HUE, HUE + 1)) % 180).astype(np.uint8))


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Apply a table to one channel of the image in HSV."""
    tables = np.stack([_LEVELS.astype(np.uint8)] * 3, -1)
    tables[:, channel] = table
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _table(factor: float, offset: float = 0) -> np.ndarray:
    """Return level * factor + offset for all 256 levels, computed in float32 as Detectron2 does."""
    values = _LEVELS.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return values.clip(0, 255).astype(np.uint8)
