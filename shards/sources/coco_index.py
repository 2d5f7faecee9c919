"""A COCO annotation file of any size: its images, and where their annotations lie in it."""

from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from shards.doctor import Finding
from shards.errors import DataError
from shards.format.schema import key_of
from shards.format.taxonomy import Category, Taxonomy, palette
from shards.raw.json_entries import Entry, damaged, entries


class Photo(NamedTuple):
    """An entry of `images`."""

    file_name: str
    width: int
    height: int
    licence: Any
    origin: str | None


@dataclass(slots=True)
class CocoIndex:
    """An annotation file of `kind` panoptic or instances.

    By image id: `photos`; `places`, the start and end byte of each annotation, one after the other;
    `digests`, a number for all that the file says; `maps`, the file names of panoptic PNGs.
    `repeated` holds the photos of an id that several have, `again` (image id, annotation id) of
    annotations whose id an earlier one has.
    """

    path: Path
    kind: str
    photos: dict[Any, Photo] = field(default_factory=dict)
    places: dict[Any, array] = field(default_factory=dict)
    digests: defaultdict[Any, int] = field(default_factory=lambda: defaultdict(int))
    maps: dict[Any, str] = field(default_factory=dict)
    repeated: dict[Any, list[Photo]] = field(default_factory=dict)
    again: list[tuple[Any, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    licences: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, kind: str) -> "CocoIndex":
        """Read an annotation file. Raises DataError naming the byte where it is damaged."""
        index = cls(path, kind)
        seen: set[Any] = set()
        for entry in entries(path, _LISTS):
            try:
                index._add(entry, seen)
            except (KeyError, TypeError, AttributeError) as error:
                raise damaged(path, entry.start, f"{entry.name}: {error!r}") from error
        for image_id in index.repeated:
            del index.photos[image_id]
        return index

    def _add(self, entry: Entry, seen: set[Any]) -> None:
        value = entry.value
        match entry.name:
            case "images":
                self._add_photo(value["id"], value)
                self._digest(value["id"], entry.raw)
            case "annotations":
                image_id = value["image_id"]
                self.places.setdefault(image_id, array("q")).extend((entry.start, entry.end))
                self._digest(image_id, entry.raw)
                if self.kind == "panoptic":
                    key_of(value["file_name"])  # refuses a name that leaves the folder
                    self.maps[image_id] = value["file_name"]
                else:
                    if value["id"] in seen:
                        self.again.append((image_id, value["id"]))
                    seen.add(value["id"])
            case "categories":
                self.categories.append(value)
            case "licenses":
                self.licences = value or []

    def _add_photo(self, image_id: Any, value: dict[str, Any]) -> None:
        size = value["width"], value["height"]
        photo = Photo(value["file_name"], *size, value.get("license"), value.get("flickr_url"))
        if image_id in self.photos:
            self.repeated.setdefault(image_id, [self.photos[image_id]]).append(photo)
        else:
            self.photos[image_id] = photo

    def _digest(self, image_id: Any, raw: bytes) -> None:
        self.digests[image_id] = xxhash.xxh3_64_intdigest(raw, seed=self.digests[image_id])

    def findings(self) -> list[Finding]:
        """What is found in the file as a whole."""
        return [
            Finding(photo.file_name, 17, f"{self.path.name} gives {len(photos)} images the id {id}")
            for id, photos in self.repeated.items()
            for photo in photos
        ] + [
            Finding(self.photos[image_id].file_name, 16, f"annotation id {id} occurs before")
            for image_id, id in self.again
            if image_id in self.photos
        ]

    def strays(self) -> int:
        """How many images are annotated and not listed."""
        return len(self.places.keys() - self.photos.keys() - self.repeated.keys())

    def taxonomy(self) -> Taxonomy:
        """The categories of the file; all of an instances file are things."""
        try:
            categories = [
                Category(
                    id=category["id"],
                    name=category["name"],
                    isthing=self.kind == "instances" or bool(category["isthing"]),
                    color=tuple(category.get("color") or palette(i)),
                )
                for i, category in enumerate(self.categories)
            ]
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.path}: a category lacks {error}; add it") from error
        return Taxonomy.of(f"coco_{self.kind}", categories)

    def rights(self, photo: Photo) -> dict[str, str]:
        """What the file says of a photo's licence and origin."""
        licence = next((one for one in self.licences if one["id"] == photo.licence), {})
        said = {"licence": licence.get("url"), "attribution": photo.origin}
        return {name: value for name, value in said.items() if value}


_LISTS = ("images", "annotations", "categories")
