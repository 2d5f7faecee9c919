"""The geometry of augmentation: images that are ramps show where each pixel comes from."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.data.augment import recipes
from pipeline.data.augment.color import jitter_color
from pipeline.data.augment.recipes import PAD_VALUE, AugmentSettings, augment
from pipeline.data.batch import Truth
from pipeline.data.keyed import keyed_generator

SLOPE = 5  # levels per source pixel, so that an offset by 0.3 pixels shows
CROP = 64


class Numbers:
    """A generator that returns given numbers: flip, scale and crop offset of LSJ."""

    def __init__(self, flip: float, scale: float, offset: float):
        self.uniforms, self.scale = [flip, offset], scale

    def random(self) -> float:
        return self.uniforms.pop(0)

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.scale <= high
        return self.scale


def jitter(image, maps, numbers, scale=(0.1, 2.0), crop=CROP, **more):
    """Augment by lsj: image [3, CROP, CROP], maps [L, CROP, CROP], and (height, width)."""
    settings = AugmentSettings(crop=crop, scale=list(scale), **more)
    return augment(image, Truth(maps, [], [], []), settings, numbers)


def ramps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with x and y in two channels, and maps of column + 1 and row + 1."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * SLOPE, y * SLOPE, np.full_like(x, 77)], -1)
    assert image.max() < 256
    return image.astype(np.uint8), np.stack([x + 1, y + 1]).astype(np.uint16)


def published(height, width, flip, scale, offset):
    """Return where each output pixel's center lies in the source, by the published data path.

    The source coordinates x [N] and y [M] are whole numbers at the centers of source pixels.
    """
    factor = min(CROP * scale / height, CROP * scale / width)
    axes = []
    for side, mirrored in ((width, flip < 0.5), (height, False)):
        length = max(1, int(np.round(side * factor)))  # round half to even
        start = int(np.round(max(length - CROP, 0) * offset))  # the same number on both axes
        pixel = np.arange(start, min(start + CROP, length))
        center = (pixel + 0.5) * side / length - 0.5
        axes.append(side - 1 - center if mirrored else center)
    return axes


def check(out, out_maps, shape, x, y):
    """Check that image and maps of `ramps(*shape)` show the source at x and y, then padding."""
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
@pytest.mark.parametrize("offset", [0.0, 0.37, 0.5, 0.999])
@pytest.mark.parametrize("scale", [0.1, 0.33, 0.8, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (48, 48), (3, 51), (51, 7)])
def test_jitter_is_the_published_one(shape, scale, offset, flip):
    image, maps = ramps(*shape)
    numbers = Numbers(flip, scale, offset)
    out, out_maps, (height, width) = jitter(image, maps, numbers)
    assert numbers.uniforms == []  # one number for the flip, one for both axes of the crop
    x, y = published(*shape, flip, scale, offset)
    assert (height, width) == (len(y), len(x))
    assert out.shape == (3, CROP, CROP)
    assert out_maps.shape == (2, CROP, CROP)
    assert (out.dtype, out_maps.dtype) == (np.uint8, np.uint16)
    check(out, out_maps, shape, x, y)


def test_padding_is_gray_and_no_segment():
    assert PAD_VALUE == 128


@pytest.mark.parametrize(("height", "half_to_even"), [(25, 12), (27, 14), (29, 14), (31, 16)])
def test_sizes_are_rounded_half_to_even(height, half_to_even):
    image, maps = np.zeros((height, 128, 3), np.uint8), np.ones((1, height, 128), np.uint8)
    *_, size = jitter(image, maps, Numbers(0.7, 1.0, 0.0), (1.0, 1.0))
    assert size == (half_to_even, CROP)


def test_crop_offsets_are_proportional_on_both_axes():
    """At scale 2, the 51 x 40 image is 128 x 100, so one number scales offsets of 64 and 36."""
    image, maps = ramps(40, 51)
    for offset in np.linspace(0, 1, 33, endpoint=False):
        _, out, _ = jitter(image, maps, Numbers(0.7, 2.0, offset))
        left, top = np.round(64 * offset), np.round(36 * offset)
        assert abs(out[0, 0, 0] - (left + 0.5) * 51 / 128 - 0.5) <= 0.5
        assert abs(out[1, 0, 0] - (top + 0.5) * 40 / 100 - 0.5) <= 0.5


def test_jitter_of_keyed_numbers_has_the_published_statistics():
    """65 % of 640 x 480 images are padded, and the image covers 64 % of the area on average.

    Tolerances are four standard deviations of 3000 draws.
    """
    image, maps = np.zeros((48, 64, 3), np.uint8), np.ones((1, 48, 64), np.uint8)
    padded, area = 0, 0.0
    for key in range(3000):
        random = keyed_generator(1, 0, key, "augment")
        _, out, size = jitter(image, maps, random)
        area += out.mean()
        padded += min(size) < CROP
    assert padded / 3000 == pytest.approx(0.65, abs=0.035)
    assert area / 3000 == pytest.approx(0.64, abs=0.03)


def test_half_of_the_images_are_flipped():
    image, maps = ramps(32, 32)
    flipped = 0
    for key in range(2000):
        random = keyed_generator(1, 0, key, "augment")
        _, out, (_, width) = jitter(image, maps, random, (0.5, 1.0))
        flipped += out[0, 0, 0] > out[0, 0, width - 1]
    assert flipped / 2000 == pytest.approx(0.5, abs=0.045)  # four standard deviations


@pytest.mark.parametrize("shape", [(40, 51), (51, 40), (2, 51)])
def test_fit_makes_the_longer_side_the_crop(shape):
    image, maps = ramps(*shape)
    settings = AugmentSettings(crop=CROP, augment="none")
    out, out_maps, size = augment(image, Truth(maps, [], [], []), settings, None)
    x, y = published(*shape, flip=0.7, scale=1.0, offset=0.0)
    assert max(size) == CROP
    assert size == (len(y), len(x))
    check(out, out_maps, shape, x, y)


@pytest.mark.parametrize("flip", [0.2, 0.7])
@pytest.mark.parametrize("scale", [0.1, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (70, 33), (400, 500)])
def test_jitter_by_pil_is_the_references_to_the_bit(shape, scale, flip):
    """The published steps are applied one after another by Pillow to the whole image."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    maps = rng.integers(0, 999, (2, *shape), np.uint16)
    offset = 0.37
    out, out_maps, size = jitter(image, maps, Numbers(flip, scale, offset), resize="pil")

    if flip < 0.5:
        image, maps = image[:, ::-1], maps[:, :, ::-1]
    factor = min(CROP * scale / shape[0], CROP * scale / shape[1])
    height, width = (int(np.round(side * factor)) for side in shape)
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.BILINEAR)
    top, left = (int(np.round(max(side - CROP, 0) * offset)) for side in (height, width))
    expected = np.full((CROP, CROP, 3), 128, np.uint8)
    shown = np.asarray(picture)[top : top + CROP, left : left + CROP]
    assert size == shown.shape[:2]
    expected[: size[0], : size[1]] = shown
    assert (out == expected.transpose(2, 0, 1)).all()
    for layer, made in zip(maps, out_maps, strict=True):
        labels = Image.fromarray(np.ascontiguousarray(layer).astype(np.int32), "I")
        labels = np.asarray(labels.resize((width, height), Image.NEAREST))
        expected = np.zeros((CROP, CROP), np.int32)
        expected[: size[0], : size[1]] = labels[top : top + CROP, left : left + CROP]
        assert (made == expected).all()


SIZES = {  # of the published recipes: base -> the sizes that the shorter side takes
    512: (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024),
    640: tuple(range(320, 1281, 64)),
    1024: (512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945,
           2048),
    2048: (1024, 1228, 1433, 1638, 1843, 2048, 2252, 2457, 2662, 2867, 3072, 3276, 3481, 3686,
           3891, 4096),
}  # fmt: skip


class Recorded:
    """A generator that records its draws."""

    def __init__(self, *key):
        self.generator, self.drawn = keyed_generator(*key), []

    def __getattr__(self, name):
        def draw(*args):
            self.drawn.append((name, args, getattr(self.generator, name)(*args)))
            return self.drawn[-1][2]

        return draw


@pytest.mark.parametrize("base", SIZES)
@pytest.mark.parametrize("shape", [(100, 150), (300, 200), (64, 300)])
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_shortest_edge_is_the_references(base, shape, task, monkeypatch):
    """Every step (resize, crop, color, flip, pad) is applied to the whole image.

    Pillow resizes the image and the maps, except that torch resizes semantic maps.
    """
    monkeypatch.setattr(recipes, "BASE_SCALES", range(5, 8))  # an image of 4096 pixels is slow
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (*shape, 3), np.uint8), (0, 0), 2)
    maps = rng.integers(0, 200, (1, *shape), np.uint8)
    settings = AugmentSettings(
        crop=96, crop_width=128, augment="shortest_edge", base=base, resize="pil"
    )
    seen = set()
    for key in range(8):
        random = Recorded(base, key)
        out, out_maps, size = augment(image, Truth(maps, [], [], []), settings, random, task)

        (choice, *_), (row, *_), (column, *_) = [[drawn[2]] for drawn in random.drawn[:3]]
        short = SIZES[base][choice]
        h, w = shape
        newh, neww = (short, short / h * w) if h < w else (short / w * h, short)
        if max(newh, neww) > 4 * base:
            factor = 4 * base / max(newh, neww)
            newh, neww = newh * factor, neww * factor
        newh, neww = int(newh + 0.5), int(neww + 0.5)
        assert random.drawn[1][:2] == ("integers", (newh - min(newh, 96) + 1,))
        assert random.drawn[2][:2] == ("integers", (neww - min(neww, 128) + 1,))
        part = np.s_[row : row + 96, column : column + 128]
        picture = np.asarray(Image.fromarray(image).resize((neww, newh), Image.BILINEAR))[part]
        labels = np.asarray(Image.fromarray(maps[0]).resize((neww, newh), Image.NEAREST))
        if task == "semantic":
            double = torch.from_numpy(maps[None].astype(np.float64))
            labels = F.interpolate(double, (newh, neww), mode="nearest")[0, 0].numpy()
        labels = labels[part]
        again = keyed_generator(base, key)
        for name, args, _ in random.drawn[:3]:
            getattr(again, name)(*args)
        picture = jitter_color(np.ascontiguousarray(picture), again)
        if again.random() < 0.5:
            picture, labels = picture[:, ::-1], labels[:, ::-1]
        rows, columns = size
        assert (rows, columns) == picture.shape[:2]
        assert (out[:, :rows, :columns] == picture.transpose(2, 0, 1)).all()
        assert (out_maps[0, :rows, :columns] == labels).all()
        assert (out[:, rows:] == 128).all()
        assert (out[:, :, columns:] == 128).all()
        assert out_maps[0, rows:].sum() == out_maps[0, :, columns:].sum() == 0
        assert out.shape == (3, 96, 128)
        seen.add(choice)
    assert len(seen) > 1


@pytest.mark.parametrize("base", SIZES)
def test_the_shorter_side_takes_the_published_sizes_equally_often(base, monkeypatch):
    image, maps = np.zeros((32, 32, 3), np.uint8), np.zeros((1, 32, 32), np.uint8)
    settings = AugmentSettings(crop=32, augment="shortest_edge", base=base)
    counts = Counter()

    def count(maps, window, _):
        counts[window.height] += 1
        return maps

    monkeypatch.setattr(recipes, "image_window", lambda image, *_: image)
    monkeypatch.setattr(recipes, "maps_window", count)
    for key in range(3200):
        augment(image, Truth(maps, [], [], []), settings, keyed_generator(key))
    assert tuple(sorted(counts)) == SIZES[base]
    assert max(abs(count - 200) for count in counts.values()) < 60  # four standard deviations


def test_a_crop_of_one_class_is_drawn_again():
    """The left half has class 3, the right half class 5, and a strip has no label."""
    maps = np.ones((1, 64, 128), np.uint8)
    maps[:, :, 64:] = 2
    maps[:, 60:] = 0
    truth = Truth(maps, [3, 5], [0, 0], [1, 2])
    image = np.zeros((64, 128, 3), np.uint8)
    shares = {}
    for limit in (1.0, 0.75):
        settings = AugmentSettings(
            crop=32, augment="shortest_edge", base=64, category_max_area=limit
        )
        shares[limit] = []
        for key in range(150):
            _, out, _ = augment(image, truth, settings, keyed_generator(key))
            count = np.bincount(out.ravel(), minlength=3)[1:]
            shares[limit].append(count.max() / count.sum())
    assert np.mean(np.array(shares[0.75]) < 0.75) > 0.6  # of ten tries, 15 % each
    assert np.mean(np.array(shares[1.0]) < 0.75) < 0.4
