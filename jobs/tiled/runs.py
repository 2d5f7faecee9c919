"""Masks as run lengths in the form of pycocotools, for images too large for many arrays."""

from collections.abc import Sequence
from typing import Any, overload

import cv2
import numpy as np
from pycocotools import mask as rle

Runs = Any
"""pycocotools' type of a mask: its `size`, and the compressed `counts` of runs in its columns."""


class RunMasks(Sequence[np.ndarray]):
    """Masks of one image, `bool [H, W]`, each of which is decoded when it is asked for."""

    def __init__(self, runs: list[Runs]):
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "RunMasks": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | RunMasks":
        if isinstance(index, slice):
            return RunMasks(self.runs[index])
        return rle.decode(self.runs[index]).astype(bool)


def encode(masks: Sequence[np.ndarray], number: int) -> Runs:
    """Return the run lengths of one of the masks, `bool [H, W]` each."""
    if isinstance(masks, RunMasks):
        return masks.runs[number]
    return rle.encode(np.asfortranarray(masks[number], np.uint8))


def encode_window(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> Runs:
    """Return the run lengths of a mask, `bool [h, w]`, that lies in a larger image.

    Args:
        mask: The mask, outside of which the image is empty.
        top: Its first row in the image.
        left: Its first column in the image.
        size: Height and width of the image.
    """
    height, width = size
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    padded = np.zeros((w, h + 2), np.int8)
    padded[:, 1:-1] = mask[y : y + h, x : x + w].T
    change = np.diff(padded, axis=1)
    # The k-th run begins and ends in the same column, so both lists have the same order.
    (column, begin), (_, end) = np.nonzero(change > 0), np.nonzero(change < 0)
    offset = (left + x + column) * height + top + y
    bounds = np.stack([offset + begin, offset + end], axis=1).ravel()
    meets = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])  # columns that are full to both ends
    bounds = np.delete(bounds, np.concatenate([2 * meets + 1, 2 * meets + 2]))
    counts = np.diff(bounds, prepend=0, append=height * width)
    return rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def union(runs: list[Runs]) -> Runs:
    """Return the union of masks of one image."""
    return runs[0] if len(runs) == 1 else rle.merge(runs)
