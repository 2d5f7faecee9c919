"""Index a COCO annotation file of any size: its images, and the bytes of their annotations."""

from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from shards.doctor import Finding
from shards.errors import DataError
from shards.format.schema import key_of
from shards.format.taxonomy import Category, Taxonomy, palette, rgb
from shards.raw.json_entries import Entry, damaged, iterate_entries

_LISTS = ("images", "annotations", "categories")


class Photo(NamedTuple):
    """An entry of `images`."""

    file_name: str
    width: int
    height: int
    license_id: Any
    origin: str | None


@dataclass(slots=True)
class CocoIndex:
    """The index of an annotation file.

    Attributes:
        path: The file.
        kind: `panoptic` or `instances`.
        photos: The images by id, without those whose id is not unique.
        ranges: By image id, the byte ranges (start, end, start, end, ...) of the annotations.
        digests: By image id, a digest of all that the file says about the image.
        maps: By image id, the file name of the panoptic PNG.
        repeated_photos: By id, the images that share the id.
        repeated_annotations: (image id, annotation id) of every annotation whose id occurred
            earlier in the file.
        categories: The entries of `categories`.
        licenses: The entries of `licenses`.
    """

    path: Path
    kind: str
    photos: dict[Any, Photo] = field(default_factory=dict)
    ranges: dict[Any, "array[int]"] = field(default_factory=dict)
    digests: defaultdict[Any, int] = field(default_factory=lambda: defaultdict(int))
    maps: dict[Any, str] = field(default_factory=dict)
    repeated_photos: dict[Any, list[Photo]] = field(default_factory=dict)
    repeated_annotations: list[tuple[Any, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    licenses: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, kind: str) -> "CocoIndex":
        """Read an annotation file.

        Raises:
            DataError: The file is damaged; the error names the byte.
        """
        index = cls(path, kind)
        seen: set[Any] = set()
        for entry in iterate_entries(path, _LISTS):
            try:
                index._add(entry, seen)
            except (KeyError, TypeError, AttributeError) as error:
                raise damaged(path, entry.start, f"{entry.name}: {error!r}") from error
        for image_id in index.repeated_photos:
            del index.photos[image_id]
        return index

    def _add(self, entry: Entry, seen: set[Any]) -> None:
        """Add an entry of the file; `seen` collects the ids of the instance annotations."""
        value = entry.value
        match entry.name:
            case "images":
                self._add_photo(value["id"], value)
                self._digest(value["id"], entry.raw)
            case "annotations":
                image_id = value["image_id"]
                self.ranges.setdefault(image_id, array("q")).extend((entry.start, entry.end))
                self._digest(image_id, entry.raw)
                if self.kind == "panoptic":
                    key_of(value["file_name"])  # raises DataError for a name that leaves the folder
                    self.maps[image_id] = value["file_name"]
                else:
                    if value["id"] in seen:
                        self.repeated_annotations.append((image_id, value["id"]))
                    seen.add(value["id"])
            case "categories":
                self.categories.append(value)
            case "licenses":
                self.licenses = value or []

    def _add_photo(self, image_id: Any, value: dict[str, Any]) -> None:
        size = value["width"], value["height"]
        photo = Photo(value["file_name"], *size, value.get("license"), value.get("flickr_url"))
        if image_id in self.photos:
            self.repeated_photos.setdefault(image_id, [self.photos[image_id]]).append(photo)
        else:
            self.photos[image_id] = photo

    def _digest(self, image_id: Any, raw: bytes) -> None:
        self.digests[image_id] = xxhash.xxh3_64_intdigest(raw, seed=self.digests[image_id])

    def findings(self) -> list[Finding]:
        """Return the findings about the file as a whole."""
        return [
            Finding(photo.file_name, 17, f"{self.path.name} gives {len(photos)} images the id {id}")
            for id, photos in self.repeated_photos.items()
            for photo in photos
        ] + [
            Finding(self.photos[image_id].file_name, 16, f"annotation id {id} occurs before")
            for image_id, id in self.repeated_annotations
            if image_id in self.photos
        ]

    def unlisted(self) -> int:
        """Return the number of images that have annotations but are not listed in `images`."""
        return len(self.ranges.keys() - self.photos.keys() - self.repeated_photos.keys())

    def taxonomy(self) -> Taxonomy:
        """Return the categories of the file; all categories of an instances file are things.

        Raises:
            DataError: A category is malformed, the list is empty, or an id occurs twice.
        """
        categories = []
        for i, category in enumerate(self.categories):
            try:
                color = rgb(category.get("color") or palette(i))
                isthing = self.kind == "instances" or bool(category["isthing"])
                categories.append(Category(category["id"], category["name"], isthing, color))
            except KeyError as error:
                raise DataError(
                    f"a category lacks {error}", where=self.path, fix="add it"
                ) from error
            except (AttributeError, TypeError, DataError) as error:
                raise DataError(
                    f"the category {category!r} is malformed",
                    where=self.path,
                    fix="correct it, its color is three numbers from 0 to 255",
                ) from error
        try:
            return Taxonomy.of(f"coco_{self.kind}", categories)
        except DataError as error:
            raise error.at(self.path) from error

    def rights(self, photo: Photo) -> dict[str, str]:
        """Return the license and the origin of a photo, as far as the file names them."""
        license = next((entry for entry in self.licenses if entry["id"] == photo.license_id), {})
        rights = {"licence": license.get("url"), "attribution": photo.origin}
        return {name: value for name, value in rights.items() if value}
