"""Average precision of instance masks with the semantics of pycocotools, in bounded memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from pipeline.score.average_precision import average_precision
from pipeline.score.matching import Matches, match

Mask = np.ndarray | Mapping[str, Any]  # bool [H, W], or run lengths as pycocotools encodes them


class InstanceScores:
    """The matches of images, some kilobytes each, whose masks are forgotten.

    `merge` adds the images of another rank.
    """

    def __init__(self, num_categories: int):
        self.num_categories = num_categories
        self._images: dict[str, Matches] = {}

    def update(
        self,
        image_id: str,
        size: tuple[int, int],
        scores: np.ndarray,
        categories: np.ndarray,
        masks: Sequence[Mask],
        truth: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add one image.

        Args:
            image_id: The id of the image.
            size: Its height and width.
            scores: `[N]`, the scores of the predictions.
            categories: `[N]`, their classes.
            masks: Their masks.
            truth: The `category`, `iscrowd`, and `area` (the publisher's) of each true instance,
                and its mask as `mask` or `rle`.

        Raises:
            ValueError: The image was added before, the numbers of masks and scores differ, or a
                mask has another size than the image.
        """
        if image_id in self._images:
            raise ValueError(f"image {image_id} was added before")
        shapes = [_size(mask) for mask in masks]
        if shapes != [tuple(size)] * len(scores):
            raise ValueError(
                f"image {image_id}: the masks have the sizes {shapes}, "
                f"but {len(scores)} masks of size {size} are expected"
            )
        true = [t["rle"] if "rle" in t else t["mask"] for t in truth]
        if any(_size(mask) != tuple(size) for mask in true):
            raise ValueError(f"image {image_id}: a true mask has another size than {size}")
        entries = [dict(t) | {"rle": _encode(mask)} for t, mask in zip(truth, true, strict=True)]
        runs = _encode_all(masks)
        self._images[image_id] = match(scores, categories, runs, entries)

    def merge(self, other: "InstanceScores") -> None:
        """Add the images of another rank.

        Raises:
            ValueError: An image was added on both ranks.
        """
        assert self.num_categories == other.num_categories
        if both := self._images.keys() & other._images.keys():
            raise ValueError(f"image {min(both)} was added on two ranks")
        self._images |= other._images

    @property
    def images(self) -> list[tuple[str, Matches]]:
        """The ids and the matches of all images, in the order of ids."""
        return sorted(self._images.items())

    def result(self) -> dict[str, Any]:
        """Return what `average_precision` returns; the order of images does not matter."""
        return average_precision([image for _, image in self.images], self.num_categories)


def _size(mask: Mask) -> tuple[int, ...]:
    return tuple(mask["size"]) if isinstance(mask, Mapping) else mask.shape


def _encode_all(masks: Sequence[Mask]) -> list[Mapping[str, Any]]:
    """Return the run lengths of masks; one that several detections share is encoded once."""
    known: dict[tuple, Mapping[str, Any]] = {}
    runs = []
    for mask in masks:
        if isinstance(mask, Mapping):
            runs.append(mask)
            continue
        memory = mask.__array_interface__["data"][0], mask.strides
        if memory not in known:
            known[memory] = _encode(mask)
        runs.append(known[memory])
    return runs


def _encode(mask: Mask) -> Mapping[str, Any]:
    if isinstance(mask, Mapping):
        return mask
    return run_lengths.encode(np.asfortranarray(mask, np.uint8))
