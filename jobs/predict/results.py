"""The results of `predict`: the files of each image at once, and those of all images at the end."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.coco_results import categories, id_colors, instance_entries, panoptic_entry
from jobs.pages import jpeg
from jobs.predict.gallery import THUMBNAIL_SIDE, outlines, write_gallery
from jobs.predict.inputs import PANOPTIC, RECORDS, SEMANTIC, THUMBNAILS, Images
from jobs.segmenter import Segmented
from pipeline.pictures.sheet import write_png
from shards.files import read_json, whole_file, write_json
from shards.format.taxonomy import Taxonomy

INSTANCE, INSTANCES, SUMMARY, GALLERY = "instance", "instances.json", "summary.json", "gallery.html"
VERSION = 1  # of a record
Record = dict[str, Any]
"""What is known about an image that is done; docs/predict.md lists the keys."""


@dataclass(frozen=True)
class Results:
    """The results in one folder.

    Attributes:
        folder: The folder.
        tasks: The tasks whose files are written.
        least_score: The least score of instances.
        made_with: The hash of the weights, and the settings, on which the results depend.
    """

    folder: Path
    tasks: tuple[str, ...]
    least_score: float
    made_with: str

    @property
    def made_by(self) -> str:
        """A hash of everything except the image that the results of an image depend on."""
        parts = [VERSION, self.tasks, self.least_score, self.made_with]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def files(self, id: str) -> list[str]:
        """Return the names of the files of an image, the record last."""
        names = [f"{id}.png", f"{THUMBNAILS}/{id}.jpg"]
        if PANOPTIC in self.tasks:
            names.append(f"{PANOPTIC}/{id}.png")
        if SEMANTIC in self.tasks:
            names.append(f"{SEMANTIC}/{id}.png")
        return [*names, f"{RECORDS}/{id}.json"]

    def documents(self) -> list[str]:
        """Return the names of the files that are written at the end."""
        panoptic = [f"{PANOPTIC}.json"] if PANOPTIC in self.tasks else []
        instances = [INSTANCES] if INSTANCE in self.tasks else []
        return [*panoptic, *instances, GALLERY, SUMMARY]

    def record(self, id: str) -> Record | None:
        """Return the record of an image; None if it is missing, cut short, or of another kind."""
        try:
            record = read_json(self.folder / RECORDS / f"{id}.json")
            return record if record["made_by"] and record["image"]["id"] == id else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def done(self, images: Images) -> set[str]:
        """Return the ids of the images whose results exist, for the image as it is now."""
        return {
            id for id, source in images.sources.items()
            if (record := self.record(id))
            and record["made_by"] == self.made_by
            and record.get("stamp") == source.stamp()
            and all((self.folder / name).is_file() for name in self.files(id))
        }  # fmt: skip

    def write(self, id: str, name: str, stamp: str, segmented: Segmented) -> None:
        """Write the files of an image, the record last."""
        result, taxonomy = segmented.result, segmented.taxonomy
        height, width = segmented.image.shape[:2]
        write_png(self.folder / f"{id}.png", segmented.picture)
        with whole_file(self.folder / THUMBNAILS / f"{id}.jpg") as file:
            file.write(jpeg(segmented.picture, THUMBNAIL_SIDE))
        record: Record = {
            "made_by": self.made_by,
            "stamp": stamp,
            "image": {"id": id, "file_name": name, "height": height, "width": width},
            "highest_score": float(result.highest_scores.max()),
            "outlines": outlines(segmented),
        }
        if PANOPTIC in self.tasks:
            write_png(self.folder / PANOPTIC / f"{id}.png", id_colors(result.panoptic))
            record[PANOPTIC] = panoptic_entry(id, result, taxonomy)
        if INSTANCE in self.tasks:
            record[INSTANCE] = instance_entries(id, result, taxonomy, self.least_score)
        if SEMANTIC in self.tasks:
            of_class = np.array([category.id for category in taxonomy.categories])
            kind = np.uint8 if of_class.max() < 256 else np.uint16
            labels = of_class.astype(kind)[result.semantic]
            write_png(self.folder / SEMANTIC / f"{id}.png", labels)
        write_json(self.folder / RECORDS / f"{id}.json", record)

    def finish(
        self, images: Images, taxonomy: Taxonomy, about: dict[str, Any], reasons: Mapping[str, str]
    ) -> dict[str, Any]:
        """Write the files about all images, in the order of the inputs.

        Args:
            images: The inputs.
            taxonomy: The classes.
            about: What `summary.json` says about the run.
            reasons: Why images were left out, by their ids.

        Returns:
            What `summary.json` holds.
        """
        unread = {images.name(path): reason for path, reason in images.unread.items()}
        left_out = unread | {images.names[id]: why for id, why in reasons.items()}
        entries = []
        with self._instances_file() as add:
            for id in images.sources:
                if id in reasons or (record := self.record(id)) is None:
                    continue
                found = record.pop(INSTANCE, [])
                add(found)
                entries.append(record | {"instances": len(found)})
        if PANOPTIC in self.tasks:
            document = {
                "images": [entry["image"] for entry in entries],
                "annotations": [entry[PANOPTIC] for entry in entries],
                "categories": categories(taxonomy),
            }
            write_json(self.folder / f"{PANOPTIC}.json", document)
        rows = [{"file": name, "reason": why} for name, why in left_out.items()]
        summary = about | self._counts(entries)
        summary |= {"left_out": rows, "ignored": [images.name(path) for path in images.ignored]}
        write_gallery(self.folder / GALLERY, entries, taxonomy, summary)
        write_json(self.folder / SUMMARY, summary)
        return summary

    def _counts(self, entries: list[Record]) -> dict[str, Any]:
        """Return the numbers of images, segments, and instances, and the images without segment."""
        counts: dict[str, Any] = {"tasks": list(self.tasks), "images": len(entries)}
        if PANOPTIC in self.tasks:
            segments = [len(entry[PANOPTIC]["segments_info"]) for entry in entries]
            counts["segments"] = sum(segments)
            counts["without_segment"] = [
                {"file": entry["image"]["file_name"], "highest_score": entry["highest_score"]}
                for entry, count in zip(entries, segments, strict=True)
                if not count
            ]
        if INSTANCE in self.tasks:
            counts["instances"] = sum(entry["instances"] for entry in entries)
        return counts

    @contextlib.contextmanager
    def _instances_file(self) -> Iterator[Callable[[list[Record]], None]]:
        """Yield a function that adds instances to the list in their file, which is not kept in
        memory."""
        if INSTANCE not in self.tasks:
            yield lambda _: None
            return
        with whole_file(self.folder / INSTANCES) as file:
            start = b"[\n"

            def add(instances: list[Record]) -> None:
                nonlocal start
                for instance in instances:
                    file.write(start + json.dumps(instance).encode())
                    start = b",\n"

            yield add
            file.write(b"[]\n" if start == b"[\n" else b"\n]\n")
