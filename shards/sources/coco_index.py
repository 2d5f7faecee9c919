"""Index a COCO annotation file of any size: its images, and the bytes of their annotations."""

import contextlib
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import xxhash

from shards.doctor import Finding
from shards.errors import DataError
from shards.format.schema import image_ext, is_printable
from shards.format.taxonomy import Taxonomy
from shards.raw.json_entries import Entry, iterate_entries
from shards.raw.values import identifier, integer, member, optional, text
from shards.sources.coco_categories import taxonomy_of
from shards.sources.coco_entry import is_crowd, relative_name

_LISTS = ("images", "annotations", "categories")


class Photo(NamedTuple):
    """An entry of `images`."""

    file_name: str
    size: tuple[int, int] | None  # width and height, if the file gives both
    license_id: Any
    origin: str | None

    @classmethod
    def of(cls, value: Any) -> "Photo":
        """Return the photo of an entry; without `file_name`, LVIS means the end of `coco_url`.

        Raises:
            ValueError: The entry is malformed.
        """
        name, url = value.get("file_name"), value.get("coco_url")
        if "file_name" not in value and isinstance(url, str):
            name = PurePosixPath(url).name
        name = relative_name(name, "image")
        image_ext(name)
        width, height = value.get("width"), value.get("height")
        size = None
        if width is not None and height is not None:
            size = integer("width", width), integer("height", height)
        license_id = optional(identifier, "license", value.get("license"))
        return cls(name, size, license_id, optional(text, "flickr_url", value.get("flickr_url")))


@dataclass(slots=True)
class CocoIndex:
    """The index of an annotation file.

    Attributes:
        path: The file.
        kind: `panoptic` or `instances`.
        photos: The images by id, without those whose id is not unique.
        ranges: By image id, the byte ranges (start, end, start, end, ...) of the annotations.
        digests: By image id, a digest of all that the file says about the image.
        maps: By image id, the file name of the panoptic PNG, if it is one.
        repeated_photos: By id, the different images that share the id.
        repeated_annotations: (image id, annotation id) of every annotation whose id occurred
            earlier in the file.
        damaged: The findings about malformed entries.
        damaged_photos: The ids of the malformed entries of `images`.
        objects: The number of segments or instances.
        crowds: The number of crowds among them.
        categories: The entries of `categories`.
        licenses: By id, the entries of `licenses`.
    """

    path: Path
    kind: str
    photos: dict[Any, Photo] = field(default_factory=dict)
    ranges: dict[Any, "array[int]"] = field(default_factory=dict)
    digests: defaultdict[Any, int] = field(default_factory=lambda: defaultdict(int))
    maps: dict[Any, str] = field(default_factory=dict)
    repeated_photos: dict[Any, list[Photo]] = field(default_factory=dict)
    repeated_annotations: list[tuple[Any, Any]] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)
    damaged_photos: set[Any] = field(default_factory=set)
    objects: int = 0
    crowds: int = 0
    categories: list[Any] = field(default_factory=list)
    licenses: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, kind: str) -> "CocoIndex":
        """Read an annotation file.

        Raises:
            DataError: The JSON is damaged, and the error names the byte; or no annotation belongs
                to an image.
        """
        index = cls(path, kind)
        seen: set[Any] = set()
        for entry in iterate_entries(path, _LISTS):
            try:
                index._add(entry, seen)
            except ValueError as error:
                index._reject(entry, error)
        for image_id in index.repeated_photos:
            del index.photos[image_id]
        index._require_match()
        return index

    def _add(self, entry: Entry, seen: set[Any]) -> None:
        """Add an entry of the file; `seen` collects the ids of the instance annotations."""
        value = entry.value
        match entry.name:
            case "images":
                image_id = identifier("id", member(value, "id"))
                self._digest(image_id, entry.raw)
                self._add_photo(image_id, Photo.of(value))
            case "annotations":
                image_id = identifier("image_id", member(value, "image_id"))
                self.ranges.setdefault(image_id, array("q")).extend((entry.start, entry.end))
                self._digest(image_id, entry.raw)
                with contextlib.suppress(ValueError):  # reading the sample rejects it
                    self._add_annotation(image_id, value, seen)
            case "categories":
                self.categories.append(value)
            case "licenses":
                self._add_licenses(value)

    def _add_photo(self, image_id: Any, photo: Photo) -> None:
        known = self.photos.setdefault(image_id, photo)
        if known != photo:
            self.repeated_photos.setdefault(image_id, [known]).append(photo)

    def _add_annotation(self, image_id: Any, value: dict[str, Any], seen: set[Any]) -> None:
        """Note what reading the samples needs to know about an annotation.

        Raises:
            ValueError: The annotation is malformed.
        """
        if self.kind == "panoptic":
            self.maps[image_id] = relative_name(member(value, "file_name"), "map")
            entries = member(value, "segments_info")
        else:
            id = identifier("id", member(value, "id"))
            if id in seen:
                self.repeated_annotations.append((image_id, id))
            seen.add(id)
            entries = [value]
        if isinstance(entries, list):
            self.objects += len(entries)
            self.crowds += sum(isinstance(entry, dict) and is_crowd(entry) for entry in entries)

    def _add_licenses(self, value: Any) -> None:
        """Keep the licenses that have an id, and of each the texts and whole numbers."""
        for entry in value if isinstance(value, list) else ():
            with contextlib.suppress(ValueError):
                id = identifier("id", member(entry, "id"))
                plain = {name: optional(identifier, name, entry[name]) for name in entry}
                plain = {name: one for name, one in plain.items() if one is not None}
                self.licenses.setdefault(id, plain)

    def _reject(self, entry: Entry, error: ValueError) -> None:
        """Note that an entry of the file is malformed, or that a shard cannot hold its name."""
        value = entry.value if isinstance(entry.value, dict) else {}
        name, file = value.get("file_name"), self.path.name
        if entry.name == "images" and isinstance(name, str) and name and is_printable(name):
            file = name
        code, what = 22, str(error)
        if isinstance(error, DataError):
            code, what = 23, error.problem.what
        where = f"{self.path.name} at byte {entry.start}: {entry.name}"
        self.damaged.append(Finding(file, code, f"{where}: {what}"))
        if entry.name == "images":
            self.damaged_photos.add(optional(identifier, "id", value.get("id")))

    def _digest(self, image_id: Any, raw: bytes) -> None:
        self.digests[image_id] = xxhash.xxh3_64_intdigest(raw, seed=self.digests[image_id])

    def _unlisted(self) -> list[Any]:
        """Return the image ids of the annotations that belong to no image."""
        listed = self.photos.keys() | self.repeated_photos.keys() | self.damaged_photos
        return [image_id for image_id in self.ranges if image_id not in listed]

    def _require_match(self) -> None:
        """Raise DataError if there are images and annotations, and none belongs to another."""
        unlisted = self._unlisted()
        if self.photos and unlisted and len(unlisted) == len(self.ranges):
            raise DataError(
                f"no annotation belongs to an image: the first image_id is {unlisted[0]!r}, and "
                f"the first image has the id {next(iter(self.photos))!r}",
                where=self.path,
                fix="write the id of an image as the image_id of its annotations",
            )

    def findings(self) -> list[Finding]:
        """Return the findings about the file as a whole."""
        found = self.damaged + [
            Finding(photo.file_name, 17, f"{self.path.name} gives {len(photos)} images the id {id}")
            for id, photos in self.repeated_photos.items()
            for photo in photos
        ]
        found += [
            Finding(self.photos[image_id].file_name, 16, f"annotation id {id} occurs before")
            for image_id, id in self.repeated_annotations
            if image_id in self.photos
        ]
        found += [
            Finding(
                self.path.name,
                24,
                f"{len(self.ranges[image_id]) // 2} annotations have the image_id {image_id!r}, "
                "which no image has",
            )
            for image_id in self._unlisted()
        ]
        return found

    def taxonomy(self) -> tuple[Taxonomy, list[str]]:
        """Return the classes of the file, and the names of those whose color is unreadable.

        Raises:
            DataError: A category is malformed, the list is empty, or an id occurs twice.
        """
        return taxonomy_of(self.path, self.kind, self.categories)

    def rights(self, photo: Photo) -> dict[str, str]:
        """Return the license and the origin of a photo, as far as the file names them."""
        url = self.licenses.get(photo.license_id, {}).get("url")
        rights = {"licence": url if isinstance(url, str) else None, "attribution": photo.origin}
        return {name: value for name, value in rights.items() if value}
