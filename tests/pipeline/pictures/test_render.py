"""Pictures: which pixels are covered or unchanged, and whether names can be read."""

import numpy as np
import pytest

from pipeline.pictures import render
from pipeline.pictures.regions import Region
from pipeline.pictures.render import grid, overlay, shrink, side_by_side
from shards.format.taxonomy import Category, Taxonomy, palette

TAXONOMY = Taxonomy(
    "toy",
    (
        Category(1, "circle", True, (230, 40, 40)),
        Category(4, "square", True, (40, 60, 230)),
        Category(9, "sky", False, (90, 200, 120)),
    ),
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def two_boxes() -> np.ndarray:
    ids = np.zeros((300, 400), np.int32)
    ids[40:240, 30:180] = 7
    ids[100:290, 260:390] = 3
    return ids


REGIONS = [Region(7, 0), Region(3, 2)]


def test_segments_are_tinted_and_other_pixels_are_unchanged():
    image, ids = noise(300, 400), two_boxes()
    kept = image.copy(), ids.copy()
    picture = overlay(image, ids, REGIONS, TAXONOMY)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[ids == 0][:1000], image[ids == 0][:1000])
    outside = picture[:, 190:250]  # away from contours and names
    np.testing.assert_array_equal(outside, image[:, 190:250])
    for corner, opacity, category in (
        (np.s_[45:70, 35:60], 0.46, 0),
        (np.s_[105:130, 265:290], 0.34, 2),
    ):
        blend = (1 - opacity) * image[corner] + opacity * np.array(
            TAXONOMY.categories[category].color
        )
        np.testing.assert_allclose(picture[corner], blend, atol=0.51)  # rounding to integers
    contour = picture[140, 30].astype(int)  # antialiased, so not the color to the bit
    assert np.abs(contour - TAXONOMY.categories[0].color).max() < 30
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(ids, kept[1])


def test_without_segments_the_picture_is_the_image():
    image = noise(300, 400)
    np.testing.assert_array_equal(overlay(image, np.zeros((300, 400), int), [], TAXONOMY), image)


@pytest.mark.parametrize(
    ("size", "factor"), [((128, 128), 2), ((100, 300), 3), ((256, 300), 1), ((255, 400), 2)]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size, factor):
    ids = np.ones(size, np.uint8)
    picture = overlay(noise(*size), ids, [Region(1, 0)], TAXONOMY)
    assert picture.shape == (size[0] * factor, size[1] * factor, 3)
    assert min(picture.shape[:2]) >= render.LEAST_SIDE


def test_segments_of_one_class_differ_in_shade():
    image, ids = np.full((300, 400, 3), 128, np.uint8), two_boxes()
    same = [region._replace(category=0) for region in REGIONS]
    picture = overlay(image, ids, same, TAXONOMY).astype(int)
    assert np.abs(picture[45, 35] - picture[105, 265]).max() >= 8


def test_names_are_written_and_never_cover_much(monkeypatch):
    """The names of 60 segments change at most a fifth of the picture and do not overlap."""
    ids = np.kron(np.arange(1, 61).reshape(6, 10), np.ones((50, 40), int))
    regions = [Region(n, n % 3) for n in range(1, 61)]
    image = noise(300, 400)
    named = overlay(image, ids, regions, TAXONOMY)
    boxes = []
    free_box = render._free_box

    def remembered(drawn, size, plate, taken):
        boxes[:] = taken
        return free_box(drawn, size, plate, taken)

    monkeypatch.setattr(render, "_free_box", remembered)
    overlay(image, ids, regions, TAXONOMY)
    monkeypatch.setattr(render, "_label", lambda canvas, *_: canvas)
    bare = overlay(image, ids, regions, TAXONOMY)
    share = (named != bare).any(-1).mean()
    assert 0.08 < share <= 0.2
    covered = np.zeros(ids.shape, int)
    for x0, y0, x1, y1 in boxes:
        covered[y0:y1, x0:x1] += 1
    assert len(boxes) >= 10
    assert covered.max() == 1


def test_a_crowd_is_marked_in_its_name_and_slivers_get_no_name():
    image, ids = noise(300, 400), two_boxes()
    plain = overlay(image, ids, REGIONS, TAXONOMY)
    crowd = overlay(image, ids, [REGIONS[0]._replace(iscrowd=1), REGIONS[1]], TAXONOMY)
    assert (plain != crowd).any()
    ids[ids > 0] = 0
    ids[10:14, 10:14] = 7
    sliver = overlay(image, ids, REGIONS, TAXONOMY)
    assert (sliver != image).any(-1).sum() <= 6 * 6


@pytest.mark.parametrize("index", range(40))
def test_ink_stands_out_on_every_plate(index):
    """Compute the contrast by WCAG 2 with the exact sRGB curve."""

    def luminance(color):
        c = np.array(color) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    rng = np.random.default_rng(index)
    for color in (palette(index), *rng.integers(0, 256, (20, 3)).tolist()):
        low, high = sorted((luminance(color), luminance(render._ink(color))))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_rows_stand_under_their_captions():
    a, b, small = noise(60, 80), noise(60, 100), noise(30, 40)
    sheet = side_by_side(["truth", "prediction"], [a, b], [small, a])
    assert (sheet[0] == 255).all()
    assert (sheet[:, 0] == 255).all()
    head = sheet.shape[0] - 2 * (60 + 12)
    assert (sheet[:head] < 128).any()  # captions
    np.testing.assert_array_equal(sheet[head : head + 60, 12:92], a)
    np.testing.assert_array_equal(sheet[head : head + 60, 104:204], b)
    np.testing.assert_array_equal(sheet[head + 72 : head + 132, 114:194], a)  # centered
    assert sheet.shape[1] == 12 + 80 + 12 + 100 + 12
    with pytest.raises(ValueError, match="argument 3 is longer"):
        side_by_side(["truth", "prediction"], [a])


def test_a_map_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"the picture has the size \(30, 40\), but its map has \(40, 30\)"
    ):
        overlay(noise(30, 40), np.zeros((40, 30), int), [], TAXONOMY)


def test_a_grid_fills_its_last_row_with_white():
    a, b, c = noise(60, 80), noise(60, 80), noise(60, 80)
    drawn = grid(["image"], [[a], [b], [c]], per_row=2)
    white = np.full_like(c, 255)
    np.testing.assert_array_equal(drawn, side_by_side(["image"] * 2, [a, b], [c, white]))


def test_shrink_keeps_ids_and_small_pictures():
    image, ids = noise(300, 400), two_boxes()
    small, small_ids = shrink(image, ids, 100)
    assert small.shape == (75, 100, 3)
    assert small_ids.shape == (75, 100)
    assert set(np.unique(small_ids)) == {0, 3, 7}
    same, same_ids = shrink(image, ids, 400)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_ids, ids)
    assert shrink(noise(1, 400), np.ones((1, 400), np.uint8), 40)[1].shape == (1, 40)
