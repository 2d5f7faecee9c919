"""The folder of `evaluate --results`, which all ranks fill with the predictions of their images."""

import contextlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.coco_results import categories, id_colors, panoptic_entry, scored_masks
from jobs.outputs import whole_folder
from pipeline.data.store import Store
from pipeline.distributed import rank_and_world
from pipeline.score.inference import Result
from shards.files import disk_errors
from shards.format.published import published_ids
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy
from shards.text import say

COMMAND = "evaluate --results"
PANOPTIC, SEMANTIC, INSTANCES, MASKS = "panoptic", "semantic", "instances", "masks"
_ROWS = ".rows-"  # files with a line of JSON per image, which `finish` joins


@dataclass(frozen=True)
class Results:
    """The results of the tasks for which a set has truth.

    Attributes:
        folder: The folder.
        tasks: The tasks.
        taxonomy: The classes, with the publisher's ids.
        is_cityscapes: Whether instances are written as Cityscapes' server reads them.
    """

    folder: Path
    tasks: tuple[str, ...]
    taxonomy: Taxonomy
    is_cityscapes: bool

    def write(self, number: int, _: np.ndarray, sample: Sample, result: Result) -> None:
        """Write the results of an image.

        Args:
            number: The index of the image in the set.
            sample: The image, for its names.
            result: The predictions.
        """
        key, row = sample.key, dict[str, Any](number=number)
        id = int(sample.image_id) if sample.image_id.isdecimal() else sample.image_id
        with disk_errors(self.folder):
            if "panoptic" in self.tasks:
                self._write_png(self.folder / PANOPTIC / f"{key}.png", id_colors(result.panoptic))
                row[PANOPTIC] = panoptic_entry(key, result, self.taxonomy) | {"image_id": id}
            if "semantic" in self.tasks:
                ids = np.array([category.id for category in self.taxonomy.categories])
                kind = np.uint8 if ids.max() < 256 else np.uint16
                self._write_png(
                    self.folder / SEMANTIC / f"{key}.png", ids.astype(kind)[result.semantic]
                )
            if "instance" in self.tasks and self.is_cityscapes:
                self._write_masks(number, key, result)
            elif "instance" in self.tasks:
                row[INSTANCES] = scored_masks(id, result, self.taxonomy)
            with (self.folder / f"{_ROWS}{rank_and_world()[0]}").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        """Write the files about all images, in the order of the set, after the last image."""
        parts = sorted(self.folder.glob(f"{_ROWS}*"))
        with disk_errors(self.folder):
            if "panoptic" in self.tasks:
                self._join(parts, PANOPTIC, lambda row: [row[PANOPTIC]],
                           categories=categories(self.taxonomy))  # fmt: skip
            if "instance" in self.tasks and not self.is_cityscapes:
                self._join(parts, INSTANCES, lambda row: row[INSTANCES])
            for part in parts:
                part.unlink()

    def _write_masks(self, number: int, key: str, result: Result) -> None:
        """Write a mask per instance, and the list of them: path, label, and score."""
        path = self.folder / INSTANCES / f"{key}_pred.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        found = zip(result.scores.tolist(), result.categories.tolist(), result.masks, strict=True)
        for n, (score, category, mask) in enumerate(found):
            name = f"{MASKS}/{number:06d}_{n:03d}.png"
            if mask.any():
                self._write_png(path.parent / name, mask * np.uint8(255))
                lines.append(f"{name} {self.taxonomy.categories[category].id} {score!r}\n")
        path.write_text("".join(lines))

    def _write_png(self, path: Path, picture: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        colors = picture[..., ::-1] if picture.ndim == 3 else picture  # OpenCV's order is BGR
        path.write_bytes(cv2.imencode(".png", colors)[1].tobytes())

    def _join(
        self,
        parts: Iterable[Path],
        name: str,
        entries: Callable[[dict[str, Any]], list[Any]],
        **others: Any,
    ) -> None:
        """Write the entries of all rows as one list, which is not kept in memory.

        Args:
            parts: The files of the rows.
            name: The name of the file.
            entries: Returns the entries of a row.
            others: Values of the file beside the list; without them, the file is the list.
        """
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(part.open()) for part in parts]
            rows = heapq.merge(
                *(map(json.loads, file) for file in files), key=lambda r: r["number"]
            )
            file = stack.enter_context((self.folder / f"{name}.json").open("w"))
            file.write('{"annotations": [' if others else "[")
            separator = "\n"
            for entry in (entry for row in rows for entry in entries(row)):
                file.write(separator + json.dumps(entry))
                separator = ",\n"
            file.write(f"\n], {json.dumps(others)[1:]}\n" if others else "\n]\n")


@contextlib.contextmanager
def written_results(
    path: Path | None, store: Store, inputs: Iterable[Path]
) -> Iterator[Results | None]:
    """Yield what writes the results of a set's images; the folder appears if the block succeeds.

    Args:
        path: The folder; None if no results are wanted.
        store: The set.
        inputs: More files and folders that the command reads.

    Raises:
        UsageError: The folder holds anything but results of an earlier call.
    """
    if path is None:
        yield None
        return
    taxonomy = store.manifest.taxonomy
    data_set, ids = published_ids(taxonomy.names) or ("", [c.id for c in taxonomy.categories])
    known = zip(taxonomy.categories, ids, strict=True)
    published = Taxonomy(taxonomy.name, tuple(replace(one, id=id) for one, id in known))
    with whole_folder(path, "--results", COMMAND, [store.folder, *inputs]) as folder:
        results = Results(folder, store.manifest.tasks, published, data_set == "cityscapes")
        yield results
        results.finish()
    say(f"results for servers: {path}")
