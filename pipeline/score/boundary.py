"""The boundaries of segments (Cheng et al., Boundary IoU, 2021)."""

import math

import cv2
import numpy as np

WIDTH = 0.02  # of a boundary, as a share of the diagonal of the image


def boundary(labels: np.ndarray) -> np.ndarray:
    """Return the pixels near the boundary of the segment that they belong to.

    A pixel is near if a pixel of another label, or outside of the image, is at most WIDTH of the
    diagonal away (at least one pixel; the larger of the horizontal and the vertical distance).

    Args:
        labels: Integer map `[H, W]`.

    Returns:
        `bool [H, W]`.
    """
    height, width = labels.shape
    distance = max(1, round(WIDTH * math.hypot(height, width)))
    inner = np.zeros(labels.shape, np.uint8)  # 1 if all eight neighbors have the same label
    inner[1:-1, 1:-1] = 1
    for lines, other in ((labels, inner), (labels.T, inner.T)):
        differ = lines[1:] != lines[:-1]
        other[1:][differ] = 0
        other[:-1][differ] = 0
    for one, two, near_one, near_two in (
        (labels[1:, 1:], labels[:-1, :-1], inner[1:, 1:], inner[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:], inner[1:, :-1], inner[:-1, 1:]),
    ):
        differ = one != two
        near_one[differ] = 0
        near_two[differ] = 0
    # A pixel is near iff such an edge pixel is closer than the distance. OpenCV's 3x3 mask is exact
    # for this metric, and takes the same time for any distance.
    return cv2.distanceTransform(inner, cv2.DIST_C, 3) < distance
