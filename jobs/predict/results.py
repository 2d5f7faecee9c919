"""The results of `predict`: the files of each image at once, and those of all images at the end."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jobs.coco_results import categories, id_colors, instance_entries, panoptic_entry
from jobs.pages import jpeg
from jobs.predict.gallery import THUMBNAIL_SIDE, outlines, write_gallery
from jobs.predict.inputs import PANOPTIC, RECORDS, SEMANTIC, THUMBNAILS, Images
from jobs.predict.polygons import annotations
from jobs.segmenter import Segmented
from pipeline.pictures.sheet import write_png
from shards.files import read_json, whole_file, write_json
from shards.format.taxonomy import Taxonomy

INSTANCE, INSTANCES, SUMMARY, GALLERY = "instance", "instances.json", "summary.json", "gallery.html"
POLYGONS = "polygons.json"
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
        has_polygons: Whether POLYGONS is written.
    """

    folder: Path
    tasks: tuple[str, ...]
    least_score: float
    made_with: str
    has_polygons: bool = False

    @property
    def made_by(self) -> str:
        """A hash of everything except the image that the results of an image depend on."""
        parts = [VERSION, self.tasks, self.least_score, self.made_with, self.has_polygons]
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
        polygons = [POLYGONS] if self.has_polygons else []
        return [*panoptic, *instances, *polygons, GALLERY, SUMMARY]

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
        if self.has_polygons:
            record[POLYGONS] = annotations(segmented)
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
        entries: list[Record] = []
        with self._instances_file() as add:
            for id in images.sources:
                if id in reasons or (record := self.record(id)) is None:
                    continue
                found = record.pop(INSTANCE, [])
                record.pop(POLYGONS, None)
                add(found)
                entries.append(record | {"instances": len(found)})
        if self.has_polygons:
            self._write_polygons(entries, taxonomy)
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

    def _write_polygons(self, entries: list[Record], taxonomy: Taxonomy) -> None:
        """Write the polygons of all images, whose numbers are their ids, as COCO's data sets."""
        images = [entry["image"] | {"id": n} for n, entry in enumerate(entries, start=1)]
        with whole_file(self.folder / POLYGONS) as file:
            file.write(b'{"annotations": ')
            with _json_list(file) as add:
                count = 0
                for image, entry in zip(images, entries, strict=True):
                    found = (self.record(entry["image"]["id"]) or {}).get(POLYGONS, [])
                    ids = range(count + 1, count + 1 + len(found))
                    count += len(found)
                    own = {"image_id": image["id"]}
                    add([one | own | {"id": id} for id, one in zip(ids, found, strict=True)])
            rest = json.dumps({"images": images, "categories": categories(taxonomy)})
            file.write(f", {rest[1:]}\n".encode())

    @contextlib.contextmanager
    def _instances_file(self) -> Iterator[Callable[[list[Record]], None]]:
        """Yield a function that adds instances to their file, if it is written."""
        if INSTANCE not in self.tasks:
            yield lambda _: None
            return
        with whole_file(self.folder / INSTANCES) as file, _json_list(file) as add:
            yield add


@contextlib.contextmanager
def _json_list(file: BinaryIO) -> Iterator[Callable[[list[Record]], None]]:
    """Yield a function that adds records to a JSON list in a file, which is not kept in memory."""
    start = b"[\n"

    def add(records: list[Record]) -> None:
        nonlocal start
        for record in records:
            file.write(start + json.dumps(record).encode())
            start = b",\n"

    yield add
    file.write(b"[]\n" if start == b"[\n" else b"\n]\n")
