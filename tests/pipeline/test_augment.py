"""Geometry: images that are ramps of their coordinates show where every pixel came from."""

import numpy as np
import pytest

from pipeline.augment import PAD_VALUE, fit, large_scale_jitter, resize, resize_maps
from pipeline.order import keyed_generator

SLOPE = 5  # levels per source pixel, so that an offset by 0.3 pixels shows
CROP = 64


class Numbers:
    """A generator that gives the numbers it is told to: for the flip, the scale, the crop."""

    def __init__(self, flip: float, scale: float, place: float):
        self.uniforms, self.scale = [flip, place], scale

    def random(self) -> float:
        return self.uniforms.pop(0)

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.scale <= high
        return self.scale


def ramps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image with x, y in two channels, and maps of column + 1 and row + 1."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * SLOPE, y * SLOPE, np.full_like(x, 77)], -1)
    assert image.max() < 256
    return image.astype(np.uint8), np.stack([x + 1, y + 1]).astype(np.uint16)


def straightforward(height, width, flip, scale, place):
    """Where each output pixel's centre lies in the source, as in the paper's data path.

    Returns source coordinates x [n] and y [m], whole numbers at the centres of source pixels.
    """
    factor = min(CROP * scale / height, CROP * scale / width)
    axes = []
    for side, mirrored in ((width, flip < 0.5), (height, False)):
        length = max(1, int(np.round(side * factor)))  # round half to even
        offset = int(np.round(max(length - CROP, 0) * place))  # the same number on both axes
        pixel = np.arange(offset, min(offset + CROP, length))
        where = (pixel + 0.5) * side / length - 0.5
        axes.append(side - 1 - where if mirrored else where)
    return axes


def check(out, out_maps, shape, x, y):
    """Image and maps [.., CROP, CROP] of `ramps(*shape)` show the source at x, y, then padding."""
    height, width = len(y), len(x)
    inside = out[:, :height, :width].astype(float)
    assert np.abs(inside[0] - SLOPE * x.clip(0, shape[1] - 1)).max() <= 1.5  # 0.3 of a source pixel
    assert np.abs(inside[1] - SLOPE * y.clip(0, shape[0] - 1)[:, None]).max() <= 1.5
    assert (inside[2] == 77).all()
    labels = out_maps[:, :height, :width].astype(float) - 1
    assert np.abs(labels[0] - x).max() <= 0.5 + 1e-9  # no source pixel is nearer
    assert np.abs(labels[1] - y[:, None]).max() <= 0.5 + 1e-9
    padding = np.ones((CROP, CROP), bool)
    padding[:height, :width] = False  # bottom and right
    assert (out[:, padding] == PAD_VALUE).all()
    assert (out_maps[:, padding] == 0).all()


@pytest.mark.parametrize("flip", [0.2, 0.7])
@pytest.mark.parametrize("place", [0.0, 0.37, 0.5, 0.999])
@pytest.mark.parametrize("scale", [0.1, 0.33, 0.8, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (48, 48), (3, 51), (51, 7)])
def test_jitter_is_the_straightforward_one(shape, scale, place, flip):
    image, maps = ramps(*shape)
    numbers = Numbers(flip, scale, place)
    out, out_maps, (height, width) = large_scale_jitter(image, maps, numbers, CROP, (0.1, 2.0))
    assert numbers.uniforms == []  # one number for the flip, one for both axes of the crop
    x, y = straightforward(*shape, flip, scale, place)
    assert (height, width) == (len(y), len(x))
    assert out.shape == (3, CROP, CROP)
    assert out_maps.shape == (2, CROP, CROP)
    assert (out.dtype, out_maps.dtype) == (np.uint8, np.uint16)
    check(out, out_maps, shape, x, y)


def test_padding_is_grey_and_no_segment():
    assert PAD_VALUE == 128


@pytest.mark.parametrize(("height", "half_to_even"), [(25, 12), (27, 14), (29, 14), (31, 16)])
def test_sizes_are_rounded_half_to_even(height, half_to_even):
    image, maps = np.zeros((height, 128, 3), np.uint8), np.ones((1, height, 128), np.uint8)
    *_, size = large_scale_jitter(image, maps, Numbers(0.7, 1.0, 0.0), CROP, (1.0, 1.0))
    assert size == (half_to_even, CROP)


def test_crop_offsets_are_proportional_on_both_axes():
    """At scale 2 the 51 x 40 image is 128 x 100: room of 64 and 36 pixels, shared by one number."""
    image, maps = ramps(40, 51)
    for place in np.linspace(0, 1, 33, endpoint=False):
        _, out, _ = large_scale_jitter(image, maps, Numbers(0.7, 2.0, place), CROP, (0.1, 2.0))
        left, top = np.round(64 * place), np.round(36 * place)
        assert abs(out[0, 0, 0] - (left + 0.5) * 51 / 128 - 0.5) <= 0.5
        assert abs(out[1, 0, 0] - (top + 0.5) * 40 / 100 - 0.5) <= 0.5


def test_jitter_of_keyed_numbers_has_the_published_statistics():
    """Of 640 x 480 images 65 % get padding, and 64 % of the area is image, on average.

    Tolerances are four standard deviations of 3000 draws.
    """
    image, maps = np.zeros((48, 64, 3), np.uint8), np.ones((1, 48, 64), np.uint8)
    padded, area = 0, 0.0
    for key in range(3000):
        random = keyed_generator(1, 0, key, "augment")
        _, out, size = large_scale_jitter(image, maps, random, CROP, (0.1, 2.0))
        area += out.mean()
        padded += min(size) < CROP
    assert padded / 3000 == pytest.approx(0.65, abs=0.035)
    assert area / 3000 == pytest.approx(0.64, abs=0.03)


def test_half_of_the_images_are_flipped():
    image, maps = ramps(32, 32)
    flipped = 0
    for key in range(2000):
        random = keyed_generator(1, 0, key, "augment")
        _, out, (_, width) = large_scale_jitter(image, maps, random, CROP, (0.5, 1.0))
        flipped += out[0, 0, 0] > out[0, 0, width - 1]
    assert flipped / 2000 == pytest.approx(0.5, abs=0.045)  # four standard deviations


@pytest.mark.parametrize("shape", [(40, 51), (51, 40), (2, 51)])
def test_fit_makes_the_longer_side_the_crop(shape):
    image, maps = ramps(*shape)
    out, out_maps, size = fit(image, maps, CROP)
    x, y = straightforward(*shape, flip=0.7, scale=1.0, place=0.0)
    assert max(size) == CROP
    assert size == (len(y), len(x))
    check(out, out_maps, shape, x, y)


def test_shrinking_is_antialiased():
    """Stripes finer than the output average to grey instead of beating against its grid."""
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(resize(stripes, 20, 20).astype(int)[:, 1:-1]) <= 30


def test_maps_of_no_layer_keep_their_shape():
    assert resize_maps(np.zeros((0, 8, 8), np.uint8), 5, 6).shape == (0, 5, 6)
