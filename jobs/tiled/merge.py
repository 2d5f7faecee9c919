"""The results of an image from those of its tiles: segments, instances, and the class of pixels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.tiled.grid import Span, Tile
from jobs.tiled.joins import Joins, Part
from jobs.tiled.runs import RunMasks, Runs, encode_window, union
from model.segment import ImagePrediction, first_largest, semantic_scores

ROWS = 256  # of a map that are renumbered at one time


class PanopticTiles:
    """The panoptic map of an image.

    A pixel has the segment of the tile in which it is farther from the edge. If that tile has none
    there, it has the segment of the first other tile that has one. Things are joined as `Joins`
    says, and all stuff of one class is one segment. A segment has the highest score of its parts.

    Args:
        size: Height and width of the image.
    """

    def __init__(self, size: tuple[int, int]):
        self._ids = np.zeros(size, np.int32)
        self._parts: list[dict[str, Any]] = []  # part n has the number n + 1 in the map
        self._joins = Joins(size)

    def add(self, tile: Tile, ids: np.ndarray, segments: list[dict[str, Any]]) -> None:
        """Add the map of a tile, `int32 [h, w]`, and its segments."""
        numbers = np.where(ids > 0, ids + len(self._parts), 0)
        window = self._ids[tile.index]
        is_taken = window > 0
        is_taken[tile.core] = False
        np.copyto(window, numbers, where=~is_taken & (numbers > 0))
        first, size = len(self._parts) + 1, self._ids.shape
        things = {
            first + n: Part(segment["category"], _placed(ids == segment["id"], tile, size))
            for n, segment in enumerate(segments)
            if segment["isthing"]
        }
        self._joins.add(tile, things)
        self._parts += segments

    def finish(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the map, `int32 [H, W]`, and its segments."""
        pixels = np.zeros(len(self._parts) + 1, np.int64)
        for band in self._bands():
            pixels += np.bincount(band.ravel(), minlength=len(pixels))
        stuff: dict[int, list[int]] = {}
        for number, part in enumerate(self._parts, start=1):
            if not part["isthing"]:
                stuff.setdefault(part["category"], []).append(number)
        table = np.zeros(len(pixels), np.int32)
        segments: list[dict[str, Any]] = []
        for group in sorted([*self._joins.groups(), *stuff.values()]):
            if not pixels[group].any():
                continue
            parts = [self._parts[number - 1] for number in group]
            score = max(part["score"] for part in parts)
            table[group] = len(segments) + 1
            segments.append(parts[0] | {"id": len(segments) + 1, "score": score})
        for band in self._bands():
            band[:] = table[band]
        return self._ids, segments

    def _bands(self) -> list[np.ndarray]:
        return [self._ids[top : top + ROWS] for top in range(0, len(self._ids), ROWS)]


class InstanceTiles:
    """The instances of an image: joined as `Joins` says, each with the union of its parts' masks.

    An instance has the highest score of its parts.

    Args:
        size: Height and width of the image.
    """

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._parts: list[Part] = []
        self._scores: list[float] = []
        self._joins = Joins(size)

    def add(self, tile: Tile, found: dict[str, Any]) -> None:
        """Add the instances of a tile, as `model.segment.instances` returns them."""
        parts: dict[int, Part] = {}
        scores, categories = found["scores"].tolist(), found["categories"].tolist()
        for score, category, mask in zip(scores, categories, found["masks"], strict=True):
            if mask.any():
                part = Part(category, _placed(mask.cpu().numpy(), tile, self._size))
                parts[len(self._parts)] = part
                self._parts.append(part)
                self._scores.append(score)
        self._joins.add(tile, parts)

    def finish(self) -> tuple[np.ndarray, np.ndarray, RunMasks]:
        """Return the scores `float32 [N]`, the classes `int64 [N]`, and the masks."""
        groups = self._joins.groups()
        scores = [max(self._scores[number] for number in group) for group in groups]
        categories = [self._parts[group[0]].category for group in groups]
        masks = [union([self._parts[number].runs for number in group]) for group in groups]
        return np.array(scores, np.float32), np.array(categories, np.int64), RunMasks(masks)


class SemanticTiles:
    """The class of each pixel of an image, from the scores of tiles, blended by their windows.

    It keeps only the scores of the pixels that a later tile shares: those of the last columns of
    the tile before, and of the last rows of the tiles above.

    Args:
        size: Height and width of the image.
    """

    def __init__(self, size: tuple[int, int]):
        self._classes = np.zeros(size, np.uint16)
        self._left = self._above = self._below = torch.zeros(0)

    def add(self, tile: Tile, prediction: ImagePrediction) -> None:
        """Add the prediction for a tile; tiles come row by row."""
        rows, columns = tile
        device, classes = prediction.class_logits.device, prediction.class_logits.shape[1] - 1
        down, across = (torch.from_numpy(span.weights()).to(device) for span in tile)
        if columns.start == 0:
            self._above = self._below
            self._below = torch.zeros(classes, rows.after, self._classes.shape[1], device=device)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        right = torch.empty(classes, height, columns.after, device=device)
        whole = slice(columns.start, columns.stop - columns.after)
        for band, scores in semantic_scores(prediction):
            scores = scores * across
            if columns.before:
                scores[..., : columns.before] += self._left[:, band]
            right[:, band] = scores[..., width - columns.after :]
            self._add_rows(
                rows, band, whole, scores[..., : width - columns.after] * down[band, None]
            )
        self._left = right

    def _add_rows(self, rows: Span, band: slice, columns: slice, scores: Tensor) -> None:
        """Add the scores, `float32 [K, T, W]`, of a band of rows in columns that are complete."""
        last = rows.stop - rows.start - rows.after  # from here on, the tiles below are missing
        shared = max(0, min(band.stop, rows.before) - band.start)
        if shared:
            scores[:, :shared] += self._above[:, band.start : band.start + shared, columns]
        whole = max(0, min(band.stop, last) - band.start)
        if whole < band.stop - band.start:
            start = band.start + whole - last
            self._below[:, start : band.stop - last, columns] = scores[:, whole:]
        if whole:
            top = rows.start + band.start
            best = first_largest(scores[:, :whole].clone()).cpu().numpy()
            self._classes[top : top + whole, columns] = best

    def finish(self) -> np.ndarray:
        """Return the class of each pixel, `uint16 [H, W]`."""
        return self._classes


def _placed(mask: np.ndarray, tile: Tile, size: tuple[int, int]) -> Runs:
    return encode_window(mask, tile.rows.start, tile.columns.start, size)
