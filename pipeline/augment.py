"""Geometry of one training sample: image and integer maps together, randomness from its key.

Source: the reference's large-scale jitter, in its order: flip, resize, crop or pad.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

PAD_VALUE = 128  # of the image, before normalisation; maps are padded with 0 = no segment


@dataclass
class AugmentSettings:
    """What a sample is turned into.

    `augment` is `lsj` (flip, large-scale jitter, crop) or `none` (fit the crop, no randomness).
    `keep_empty` keeps segments that the crop has cut away, as the reference does for panoptic.
    """

    crop: int = 1024
    augment: str = "lsj"
    scale: list[float] = field(default_factory=lambda: [0.1, 2.0])
    keep_empty: bool = True


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """u8 [h,w,3] -> u8 [height,width,3], antialiased when it shrinks."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # fmt: skip


def resize_maps(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Integer [layers,h,w] -> [layers,height,width], nearest by pixel centres."""
    layers = [cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
              for layer in maps]  # fmt: skip
    return np.stack(layers) if layers else np.zeros((0, height, width), maps.dtype)


def crop_or_pad(array: np.ndarray, top: int, left: int, size: int, fill: int) -> np.ndarray:
    """The size x size window at (top, left) of [...,h,w], `fill` past the bottom and the right."""
    window = array[..., top : top + size, left : left + size]
    out = np.full((*array.shape[:-2], size, size), fill, array.dtype)
    out[..., : window.shape[-2], : window.shape[-1]] = window
    return out


def large_scale_jitter(
    image: np.ndarray,
    maps: np.ndarray,
    random: np.random.Generator,
    crop: int,
    scale: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Flip with p = 0.5, resize the longer side to crop·s with s ~ U(scale), crop or pad.

    One random number places the crop on both axes, as in the reference.
    Returns image u8 [3,crop,crop], maps [layers,crop,crop] and the (height, width) not padded.
    """
    flip, s, u = random.random(), random.uniform(*scale), random.random()
    if flip < 0.5:
        image, maps = image[:, ::-1], maps[:, :, ::-1]
    h, w = image.shape[:2]
    factor = crop * s / max(h, w)
    height, width = max(1, round(h * factor)), max(1, round(w * factor))
    image = resize(np.ascontiguousarray(image), height, width).transpose(2, 0, 1)
    maps = resize_maps(np.ascontiguousarray(maps), height, width)
    top, left = (round(max(0, side - crop) * u) for side in (height, width))
    valid = min(height, crop), min(width, crop)
    return (
        crop_or_pad(image, top, left, crop, PAD_VALUE),
        crop_or_pad(maps, top, left, crop, 0),
        valid,
    )


def fit(
    image: np.ndarray, maps: np.ndarray, crop: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """No randomness: the longer side becomes `crop`, the rest is padded. For overfitting tests."""
    h, w = image.shape[:2]
    height, width = (max(1, round(side * crop / max(h, w))) for side in (h, w))
    return (
        crop_or_pad(resize(image, height, width).transpose(2, 0, 1), 0, 0, crop, PAD_VALUE),
        crop_or_pad(resize_maps(maps, height, width), 0, 0, crop, 0),
        (height, width),
    )
