"""Windows of resized images compared with the whole image resized, and with the definition."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.data.augment.resize import PHASE, Window, image_window, maps_window, resize
from tests.shards.raw import SAMPLE

PHOTOGRAPH = np.asarray(
    Image.open(next((SAMPLE / "train2017").glob("*.jpg"))).convert("RGB"), np.uint8
)


def windows(shape, seed: int, count: int = 40):
    """Yield windows of images resized by 0.2 to 4, corners and borders included."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        factor = 0.2 * 20 ** rng.random()
        height, width = (max(8, round(side * factor)) for side in shape)
        rows, columns = rng.integers(1, (height + 1, width + 1))
        top, left = rng.integers(0, (height - rows + 1, width - columns + 1))
        if n % 4 == 0:
            top, left = height - rows, width - columns
        if n % 8 == 1:
            top, left = 0, 0
        yield Window(height, width, int(top), int(left), int(rows), int(columns))


@pytest.mark.parametrize("shape", [(96, 128), (131, 97), (60, 200)])
def test_a_window_of_noise_is_within_its_phase_of_the_whole(shape):
    """A shift by 1/64 of a pixel on both axes changes noise by 2/64 of 255, plus rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for window in windows(shape, 1):
        whole = resize(noise, window.height, window.width)[window.part].astype(int)
        part = image_window(noise, window)
        assert part.shape == (window.rows, window.columns, 3)
        assert np.abs(part - whole).max() <= 2 * PHASE * 255 + 2


def test_a_window_of_a_photograph_is_that_of_the_whole():
    """They differ by less than 0.3 levels on average, and by 5 at most."""
    differences = []
    for window in windows(PHOTOGRAPH.shape[:2], 2, 24):
        whole = resize(PHOTOGRAPH, window.height, window.width)[window.part].astype(int)
        differences.append(np.abs(image_window(PHOTOGRAPH, window) - whole))
    assert max(d.max() for d in differences) <= 5
    assert np.mean([d.mean() for d in differences]) < 0.3


def test_the_whole_picture_as_a_window_is_the_same_to_the_bit():
    for height, width in [(300, 400), (77, 1000), (640, 640)]:
        window = Window(height, width, 0, 0, height, width)
        assert (image_window(PHOTOGRAPH, window) == resize(PHOTOGRAPH, height, width)).all()


def test_a_window_of_maps_is_the_nearest_source_pixel():
    """Both coordinates are compared in exact arithmetic; ties take the latter pixel."""
    shape = (60, 83)
    y, x = np.mgrid[: shape[0], : shape[1]]
    maps = np.stack([y, x, y * 83 + x]).astype(np.uint16)
    for window in windows(shape, 3, 60):
        rows, columns = (
            [(2 * p + 1) * source // (2 * target) for p in range(first, first + count)]
            for source, target, first, count in (
                (shape[0], window.height, window.top, window.rows),
                (shape[1], window.width, window.left, window.columns),
            )
        )
        assert (maps_window(maps, window) == maps[:, rows][:, :, columns]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_by_pil_are_pillows(dtype):
    """The reference resizes labels wider than 8 bits as three 8-bit channels."""
    shape = (90, 120)
    rng = np.random.default_rng(4)
    maps = rng.integers(0, np.iinfo(dtype).max, (2, *shape), dtype)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    for window in itertools.chain(windows(shape, 5, 20), [Window(34, 45, 0, 0, 34, 45)]):
        size = window.width, window.height
        whole = np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))
        assert (image_window(image, window, "pil") == whole[window.part]).all()
        made = maps_window(maps, window, "pil")
        assert made.dtype == dtype
        for layer, got in zip(maps, made, strict=True):
            coded = np.stack([layer & 255, layer >> 8, 0 * layer], -1).astype(np.uint8)
            coded = np.asarray(Image.fromarray(coded).resize(size, Image.NEAREST)).astype(int)
            assert (got == (coded @ (1, 256, 0))[window.part]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_by_torch_are_those_of_the_references_semantic_maps(dtype):
    """The reference views a map as [H, W, 1, 1], permutes it, and passes it to torch as float64.

    In exact arithmetic the rule is floor(output * source / target). torch rounds the quotient, so
    that it may take the pixel before where the product is a whole number.
    """
    shape = (90, 120)
    layer = np.random.default_rng(6).integers(0, np.iinfo(dtype).max, shape, dtype)
    differing = []
    for window in itertools.chain(windows(shape, 7, 20), [Window(45, 60, 0, 0, 45, 60)]):
        view = torch.from_numpy(layer.astype("double")).view(*shape, 1, 1).permute(2, 3, 0, 1)
        wanted = F.interpolate(view, (window.height, window.width), mode="nearest")
        wanted = wanted.permute(2, 3, 0, 1).view(window.height, window.width).numpy()
        made = maps_window(layer[None], window, "torch")
        assert made.dtype == dtype
        assert (made[0] == wanted[window.part]).all()
        rows, columns = (
            np.arange(target) * source // target
            for source, target in zip(shape, (window.height, window.width), strict=True)
        )
        assert (wanted == layer[rows][:, columns]).mean() > 0.9
        differing.append((made != maps_window(layer[None], window, "pil")).mean())
    assert np.mean(differing) > 0.1


def test_shrinking_is_antialiased():
    """Stripes finer than the output average to gray instead of forming a moiré pattern."""
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(resize(stripes, 20, 20).astype(int)[:, 1:-1]) <= 30
    window = image_window(stripes, Window(20, 20, 3, 5, 10, 10))
    assert np.ptp(window.astype(int)) <= 30
