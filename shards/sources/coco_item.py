"""One raw COCO sample: read, examined, and put in the schema's terms."""

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.errors import DataError
from shards.format.schema import Instance, Record, Segment, image_ext
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_ids, read_image
from shards.raw.json_entries import read_entries
from shards.raw.masks import check_area, number_segments, pack, to_rle


@dataclass(frozen=True, slots=True)
class CocoFiles:
    """Where a split in COCO's formats lies: what is None is not there, or not in use."""

    images: Path
    instances: Path | None = None
    panoptic: Path | None = None
    maps: Path | None = None  # folder of the PNGs of `panoptic`


@dataclass(frozen=True, slots=True)
class CocoItem:
    """A raw COCO sample.

    `panoptic` and `instances` are the places of its annotations in the files, one start and end
    after the other, None where the file is not in use.
    """

    key: str
    file_name: str
    annotation: str
    image_id: str
    width: int
    height: int
    rights: dict[str, str]
    map_name: str | None
    panoptic: array | None
    instances: array | None
    source: CocoFiles
    taxonomy: Taxonomy

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the panoptic map if there is one."""
        image = self.source.images / self.file_name
        return (image, self.source.maps / self.map_name) if self.map_name else (image,)

    def load(self, doctor: Doctor) -> Record:
        """Read and check the sample: defects go to `doctor`, or are raised as Reject."""
        size = self.width, self.height
        image, *_ = read_image(self.files[0], size, doctor)
        segments = segments_map = instances = layers = None
        if self.panoptic is not None:
            segments, segments_map = self._load_segments(doctor)
        if self.instances is not None:
            instances, layers = self._load_instances(doctor)
        return Record(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source="coco",
            image_id=self.image_id,
            width=self.width,
            height=self.height,
            segments=segments,
            segments_map=segments_map,
            instances=instances,
            layers=layers,
            rights=self.rights,
        )

    def _load_segments(self, doctor: Doctor) -> tuple[list[Segment], np.ndarray]:
        if not self.panoptic:
            return [], np.zeros((self.height, self.width), np.uint8)
        if len(self.panoptic) > 2:
            raise Reject(22, f"{len(self.panoptic) // 2} panoptic annotations of one image")
        (annotation,) = read_entries(self.source.panoptic, self.panoptic)
        ids = read_ids(self.files[1], (self.width, self.height))
        with _complete(self.source.panoptic, self.panoptic[0]):
            entries = annotation["segments_info"]
            segments = [Segment(**self._common(entry)) for entry in entries]
            numbered, areas = number_segments(ids, [segment.id for segment in segments])
            for segment, area in zip(segments, areas, strict=True):
                check_area(f"segment {segment.id}", segment.area, area, doctor)
        return segments, numbered

    def _load_instances(self, doctor: Doctor) -> tuple[list[Instance], np.ndarray]:
        entries = read_entries(self.source.instances, self.instances)
        common, rles = [], []
        for entry, byte in zip(entries, self.instances[::2], strict=True):
            with _complete(self.source.instances, byte):
                name = f"instance {entry['id']}"
                common.append(self._common(entry))
                if not self.taxonomy.categories[common[-1]["category"]].isthing:
                    raise Reject(13, f"{name} is of a stuff category")
                rle = to_rle(name, entry["segmentation"], self.width, self.height, doctor)
                check_area(name, entry["area"], int(coco_mask.area(rle)), doctor)
                rles.append(rle)
        largest_first = sorted(
            range(len(rles)), key=lambda i: (-common[i]["area"], common[i]["id"])
        )
        layers, places = pack(rles, largest_first, self.height, self.width)
        instances = [
            Instance(**one, layer=layer, value=value)
            for one, (layer, value) in zip(common, places, strict=True)
        ]
        return instances, layers

    def _common(self, entry: dict[str, Any]) -> dict[str, Any]:
        try:
            category = self.taxonomy.index(entry["category_id"])
        except DataError as error:
            raise Reject(13, f"category id {entry['category_id']} is not in the list") from error
        x, y, width, height = map(float, entry["bbox"])
        return {
            "id": entry["id"],
            "category": category,
            "iscrowd": entry.get("iscrowd", 0),
            "area": float(entry["area"]),
            "bbox": [x, y, width, height],
        }


@contextlib.contextmanager
def _complete(path: Path, byte: int) -> Iterator[None]:
    """Reject a sample whose annotation, at that byte of the file, lacks what it should have."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise Reject(22, f"{path.name} at byte {byte}: {error!r}") from error
