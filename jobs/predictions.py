"""The results of `predict`: the pictures of each image at once, the JSON files at the end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from jobs.coco_results import categories, id_colors, instance_entries, panoptic_entry
from jobs.image_files import PANOPTIC, ImageFiles
from pipeline.pictures.sheet import write_png
from pipeline.score.inference import Result
from shards.files import write_json
from shards.format.taxonomy import Taxonomy

INSTANCES, SUMMARY = "instances.json", "summary.json"


class Entry(NamedTuple):
    """What the JSON files say about an image.

    Attributes:
        image: Its id, name, and size.
        segments: Its entry in panoptic.json.
        instances: Its entries in instances.json.
        highest_score: The highest score of a class.
    """

    image: dict[str, Any]
    segments: dict[str, Any]
    instances: list[dict[str, Any]]
    highest_score: float


class Results:
    """The predictions of several images.

    Args:
        folder: The folder of the pictures and of the JSON files.
        taxonomy: The classes.
        step: The step of the checkpoint.
        least_score: The least score of instances.

    Attributes:
        reasons: Why images were left out, by their ids.
    """

    def __init__(self, folder: Path, taxonomy: Taxonomy, step: int, least_score: float):
        self._folder, self._least_score = folder, least_score
        self.taxonomy, self.step = taxonomy, step
        self._entries: dict[str, Entry] = {}  # by id
        self.reasons: dict[str, str] = {}

    def add(
        self, id: str, name: str, image: np.ndarray, result: Result, picture: np.ndarray
    ) -> None:
        """Write the pictures of an image, and keep its entries for the JSON files."""
        write_png(self._folder / f"{id}.png", picture)
        write_png(self._folder / PANOPTIC / f"{id}.png", id_colors(result.panoptic))
        height, width = image.shape[:2]
        self._entries[id] = Entry(
            {"id": id, "file_name": name, "height": height, "width": width},
            panoptic_entry(id, result, self.taxonomy),
            instance_entries(id, result, self.taxonomy, self._least_score),
            float(result.highest_scores.max()),
        )

    def merged(self, others: Iterable[Self]) -> Self:
        """Add the images of other ranks, and return these results."""
        for other in others:
            self._entries |= other._entries
            self.reasons |= other.reasons
        return self

    def left_out(self, images: ImageFiles) -> dict[str, str]:
        """Return the reason for each input that was left out, by its name."""
        unread = {images.name(path): reason for path, reason in images.unread.items()}
        by_id = images.paths.items()
        return unread | {
            images.name(path): self.reasons[id] for id, path in by_id if id in self.reasons
        }

    def write(self, images: ImageFiles, run: str) -> dict[str, Any]:
        """Write the JSON files, with the images in the order of the inputs.

        Args:
            images: The inputs.
            run: The name of the run.

        Returns:
            What SUMMARY holds.
        """
        entries = [self._entries[id] for id in images.paths if id in self._entries]
        panoptic = {"images": [entry.image for entry in entries]}
        panoptic["annotations"] = [entry.segments for entry in entries]
        panoptic["categories"] = categories(self.taxonomy)
        instances = [instance for entry in entries for instance in entry.instances]
        empty = [entry for entry in entries if not entry.segments["segments_info"]]
        summary = {
            "run": run,
            "step": self.step,
            "images": len(entries),
            "segments": sum(len(entry.segments["segments_info"]) for entry in entries),
            "instances": len(instances),
            "without_segment": [
                {"file": entry.image["file_name"], "highest_score": entry.highest_score}
                for entry in empty
            ],
            "left_out": [
                {"file": name, "reason": why} for name, why in self.left_out(images).items()
            ],
            "ignored": [images.name(path) for path in images.ignored],
        }
        write_json(self._folder / f"{PANOPTIC}.json", panoptic)
        write_json(self._folder / INSTANCES, instances)
        write_json(self._folder / SUMMARY, summary)
        return summary
