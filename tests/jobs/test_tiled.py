"""Tiles: their grid and windows, and results merged across seams, from networks of known answers.

`Painter` stands for a network that segments by color: each color of a tile is one query, whose mask
is exact at corners of blocks of four pixels. Its answer for a whole picture is the truth.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from jobs.tiled.grid import Tiling
from jobs.tiled.infer import infer_tiled
from jobs.tiled.runs import encode_window
from model.mask2former import PIXEL_MEAN, PIXEL_STD, Predictions
from pipeline.score.inference import infer, network_input
from pipeline.settings import InferenceSettings
from shards.errors import UsageError

CPU = torch.device("cpu")
THINGS = (True, True, False)  # the class of a color is its red value; blue 0 is background
SIDE, OVERLAP = 96, 32
TILING = Tiling(SIDE, OVERLAP)
LOGIT = 12.0


class Painter:
    """A network whose queries are the colors (class, number, 255) of the picture that it sees.

    Args:
        blind: Receives the color and the number of the tile, and says whether it is missed.
    """

    def __init__(self, blind=lambda color, tile: False):
        self.blind, self.tiles = blind, 0

    def __call__(self, pixels: torch.Tensor) -> Predictions:
        mean, std = (torch.tensor(c)[:, None, None] for c in (PIXEL_MEAN, PIXEL_STD))
        cells = (pixels[0, :, 2::4, 2::4] * std + mean).round().int()
        colors = [c for c in cells.flatten(1).T.unique(dim=0).tolist() if c[2]]
        colors = [c for c in colors if not self.blind(c, self.tiles)]
        self.tiles += 1
        masks = [(cells == torch.tensor(c)[:, None, None]).all(0) for c in colors]
        count = len(colors) + 1  # and a query without an object
        features = torch.full((count, *cells.shape[1:]), -LOGIT)
        logits = torch.full((count, len(THINGS) + 1), -LOGIT)
        logits[-1, -1] = LOGIT
        for n, (color, mask) in enumerate(zip(colors, masks, strict=True)):
            features[n][mask] = LOGIT
            logits[n, color[0]] = LOGIT
        return Predictions(logits[None, None], torch.eye(count)[None, None], features[None])


def settings(height: int, width: int) -> InferenceSettings:
    """Return settings that resize no picture of this size."""
    found = InferenceSettings(short=min(height, width), long=max(height, width), size_divisor=32)
    found.segment.overlap_threshold = 0
    return found


def picture(*shapes: tuple[int, int, slice, slice], size=(160, 160)) -> np.ndarray:
    """Return a picture of shapes: each a class, a number, rows, and columns."""
    image = np.zeros((*size, 3), np.uint8)
    for category, number, rows, columns in shapes:
        image[rows, columns] = category, number, 255
    return image


def tiled(image, network=None):
    return infer_tiled(network or Painter(), image, settings(SIDE, SIDE), THINGS, CPU, TILING)


def assert_same_segments(ours, theirs):
    """Compare two panoptic maps up to the numbers of segments, and the classes of segments."""
    pairs = np.unique(np.stack([ours.panoptic, theirs.panoptic], -1).reshape(-1, 2), axis=0)
    classes = [{0: None} | {s["id"]: s["category"] for s in r.segments} for r in (ours, theirs)]
    assert len(pairs) == len(classes[0]) == len(classes[1])
    assert all(classes[0][a] == classes[1][b] for a, b in pairs.tolist())


def instances(result):
    """Return the class and the mask of each sure instance."""
    rows = zip(result.scores, result.categories, result.masks, strict=True)
    return sorted((int(c), mask.tobytes()) for score, c, mask in rows if score > 0.5)


# With 160 pixels, the tiles are [0, 96) and [64, 160): the seam is at 80, the overlap is 64 to 96.
CASES = {
    "across a seam": [(0, 1, slice(20, 60), slice(40, 140))],
    "across four tiles": [(1, 1, slice(40, 120), slice(20, 150))],
    "two touching": [(0, 1, slice(20, 40), slice(40, 140)), (0, 2, slice(40, 60), slice(40, 140))],
    "touching at the seam": [
        (0, 1, slice(20, 60), slice(40, 80)),
        (0, 2, slice(20, 60), slice(80, 140)),
    ],
    "only in the overlap": [(0, 1, slice(20, 40), slice(68, 92))],
    "only in all overlaps": [(0, 1, slice(72, 92), slice(68, 88))],
    "one of another class": [
        (0, 1, slice(20, 40), slice(40, 80)),
        (1, 2, slice(20, 40), slice(80, 140)),
    ],
    "stuff in two regions": [
        (2, 1, slice(0, 20), slice(0, 160)),
        (2, 2, slice(100, 160), slice(0, 160)),
    ],
    "everything": [
        (2, 1, slice(0, 160), slice(0, 160)),
        (0, 1, slice(40, 120), slice(60, 100)),
        (0, 2, slice(8, 16), slice(8, 152)),
        (1, 3, slice(120, 152), slice(72, 92)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tiles_give_what_the_whole_picture_gives(name):
    image = picture(*CASES[name])
    ours = tiled(image)
    theirs = infer(Painter(), image, settings(160, 160), THINGS, CPU)
    assert_same_segments(ours, theirs)
    np.testing.assert_array_equal(ours.semantic, theirs.semantic)
    assert instances(ours) == instances(theirs)
    np.testing.assert_allclose(ours.highest_scores, theirs.highest_scores)
    assert all(segment["score"] > 0.99 for segment in ours.segments)


def test_an_instance_that_only_one_tile_sees_in_the_overlap_is_kept():
    image = picture((0, 1, slice(20, 40), slice(68, 76)), size=(96, 160))
    ours = tiled(image, Painter(blind=lambda color, tile: tile == 0))
    theirs = infer(Painter(), image, settings(96, 160), THINGS, CPU)
    assert_same_segments(ours, theirs)
    assert instances(ours) == instances(theirs)


def test_segments_that_one_tile_tells_apart_stay_apart():
    """The second tile sees one object where the first sees two: only one of the two joins it."""
    image = picture((0, 1, slice(20, 64), slice(40, 140)), size=(96, 160))
    split = image.copy()
    split[20:40, 40:96] = 0, 2, 255

    class Two(Painter):
        def __call__(self, pixels):
            if self.tiles == 0:
                pixels, _ = network_input(split[:, :96], settings(SIDE, SIDE))
            return super().__call__(pixels)

    ours = tiled(image, Two())
    assert [segment["category"] for segment in ours.segments] == [0, 0]
    (upper,) = np.unique(ours.panoptic[24:36, 44:80])
    (lower,) = np.unique(ours.panoptic[44:60, 44:136])
    assert upper != lower


@given(st.integers(1, 2000), st.integers(32, 300), st.integers(1, 100))
def test_spans_cover_a_side_and_their_windows_add_up_to_1(length, side, overlap):
    tiling = Tiling(side, min(overlap, side // 3))
    spans = [tile.columns for tile in tiling.tiles(1, length)]
    total, core = np.zeros(length), np.zeros(length, int)
    for span in spans:
        assert 0 <= span.start < span.stop <= length
        assert span.stop - span.start <= side
        total[span.start : span.stop] += span.weights()
        core[span.start : span.stop][span.core] += 1
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (core == 1).all()
    assert all(span.after >= tiling.overlap for span in spans[:-1])
    assert len(spans) == 1 or length > side


@given(st.randoms(use_true_random=False), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_run_lengths_of_a_window_are_those_of_the_whole_mask(random, share, top, left):
    rng = np.random.default_rng(random.getrandbits(32))
    mask = rng.random((rng.integers(1, 7), rng.integers(1, 7))) < share
    whole = np.zeros((mask.shape[0] + top + rng.integers(3), mask.shape[1] + left), np.uint8)
    whole[top : top + mask.shape[0], left:] = mask
    found = encode_window(mask, top, left, whole.shape)
    np.testing.assert_array_equal(rle.decode(found), whole)
    assert rle.area(found) == mask.sum()


def test_windows_blend_the_scores_of_two_tiles():
    """Between two classes of equal scores, the seam is in the middle of the overlap."""
    image = picture((0, 1, slice(0, 96), slice(0, 160)), size=(96, 160))

    class Doubt(Painter):
        def __call__(self, pixels):
            found = super().__call__(pixels)
            if self.tiles == 2:
                found.class_logits[..., :2] = found.class_logits[..., [1, 0]]
            return found

    ours = tiled(image, Doubt())
    assert (ours.semantic[:, :80] == 0).all()
    assert (ours.semantic[:, 80:] == 1).all()


@pytest.mark.parametrize(("side", "overlap"), [(31, None), (96, 33), (96, 0), (None, 10)])
def test_sizes_that_do_not_fit_are_refused(side, overlap):
    with pytest.raises(UsageError):
        Tiling.of(side, overlap)
    assert Tiling.of(None, None) is None
    assert Tiling.of(96, None) == Tiling(96, 12)
