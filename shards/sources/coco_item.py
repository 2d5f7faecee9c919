"""Read and check one sample of a data set in COCO's formats."""

import reprlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.format.schema import Instance, Sample, Segment, image_ext
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_ids, read_image
from shards.raw.json_entries import read_ranges
from shards.raw.masks import check_area, pack
from shards.raw.segmentation import to_rle
from shards.raw.values import member
from shards.sources.coco_entry import entry_fields, read_segments, reject_malformed, relative_name


@dataclass(frozen=True, slots=True)
class CocoFiles:
    """The files of a split in COCO's formats; None if a file is missing or not in use.

    Attributes:
        images: The folder of the images.
        instances: The JSON file of the instance annotations.
        panoptic: The JSON file of the panoptic annotations.
        maps: The folder of the PNGs that `panoptic` names.
    """

    images: Path
    instances: Path | None = None
    panoptic: Path | None = None
    maps: Path | None = None


@dataclass(frozen=True, slots=True)
class CocoItem:
    """A sample in COCO's formats that has not been read yet.

    Attributes:
        key: The sample's key in the shard set.
        file_name: The image's name in its folder.
        annotation: A digest of what the annotation files say about the image.
        image_id: The image's id in the annotation files.
        size: The image's width and height in pixels; None if the annotation files do not say.
        rights: The license and attribution of the image.
        map_name: The name of the panoptic PNG in its folder, if there is one.
        panoptic: The byte ranges (start, end, ...) of the image's panoptic annotations in their
            file; None if the file is not in use.
        instances: The same for instance annotations.
        source: The files of the split.
        taxonomy: The classes.
    """

    key: str
    file_name: str
    annotation: str
    image_id: str
    size: tuple[int, int] | None
    rights: dict[str, str]
    map_name: str | None
    panoptic: Sequence[int] | None
    instances: Sequence[int] | None
    source: CocoFiles
    taxonomy: Taxonomy

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the panoptic map if there is one."""
        image = _existing(self.source.images, self.file_name)
        if self.map_name is None:
            return (image,)
        assert self.source.maps, "map names come from a panoptic file, which has a folder of maps"
        return image, _existing(self.source.maps, self.map_name)

    def load(self, doctor: Doctor) -> Sample:
        """Read and check the sample.

        Args:
            doctor: Receives the findings that keep the sample in the set.

        Raises:
            Reject: The sample has a defect that excludes it from the set.
        """
        for path, code in zip(self.files, (7, 8), strict=False):
            if not path.is_file():
                folder = self.source.images if code == 7 else self.source.maps
                raise Reject(code, _missing(path, folder or path))
        image, width, height = read_image(self.files[0], self.size, doctor)
        segments = segments_map = instances = layers = None
        if self.panoptic is not None:
            segments, segments_map = self._load_segments(self.panoptic, width, height, doctor)
        if self.instances is not None:
            instances, layers = self._load_instances(self.instances, width, height, doctor)
        return Sample(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source="coco",
            image_id=self.image_id,
            width=width,
            height=height,
            segments=segments,
            segments_map=segments_map,
            instances=instances,
            layers=layers,
            rights=self.rights,
        )

    def _load_segments(
        self, ranges: Sequence[int], width: int, height: int, doctor: Doctor
    ) -> tuple[list[Segment], np.ndarray]:
        """Read the segments and their map, `uint8` or `uint16 [H, W]`."""
        if not ranges:
            return [], np.zeros((height, width), np.uint8)
        if len(ranges) > 2:
            raise Reject(22, f"the image has {len(ranges) // 2} panoptic annotations")
        path = self.source.panoptic
        assert path
        if self.map_name is None:
            (annotation,) = read_ranges(path, ranges)
            with reject_malformed(path, ranges[0], "the panoptic annotation"):
                relative_name(member(annotation, "file_name"), "map")
        ids = read_ids(self.files[1], (width, height))
        return read_segments(path, ranges, ids, self.taxonomy, doctor)

    def _load_instances(
        self, ranges: Sequence[int], width: int, height: int, doctor: Doctor
    ) -> tuple[list[Instance], np.ndarray]:
        """Read the instances and their masks in layers, `uint8` or `uint16 [n, H, W]`."""
        path = self.source.instances
        assert path
        common, rles = [], []
        for entry, byte in zip(read_ranges(path, ranges), ranges[::2], strict=True):
            with reject_malformed(path, byte, "the annotation"):
                name = f"instance {reprlib.repr(member(entry, 'id'))}"
            with reject_malformed(path, byte, name):
                fields = entry_fields(entry, self.taxonomy)
                if not self.taxonomy.categories[fields["category"]].isthing:
                    raise Reject(13, f"{name} is of a stuff category")
                rle = to_rle(name, member(entry, "segmentation"), width, height, doctor)
            pixels = int(coco_mask.area(rle))
            if fields["area"] is None:
                fields["area"] = float(pixels)
            if fields["bbox"] is None:
                fields["bbox"] = coco_mask.toBbox(rle).tolist()
            check_area(name, fields["area"], pixels, doctor)
            common.append(fields)
            rles.append(rle)
        # The order decides the layers and with them the bytes of the shard; ids break ties
        largest_first = sorted(range(len(rles)), key=lambda i: _order(common[i]))
        layers, positions = pack(rles, largest_first, height, width)
        instances = [
            Instance(**fields, layer=layer, value=value)
            for fields, (layer, value) in zip(common, positions, strict=True)
        ]
        return instances, layers


def _order(fields: dict[str, Any]) -> tuple[float, bool, int | str]:
    """Return the key that sorts instances by decreasing area, then numbers before text as ids."""
    return -fields["area"], isinstance(fields["id"], str), fields["id"]


def _existing(folder: Path, name: str) -> Path:
    """Return the path of a file whose name may be composed otherwise on disk (macOS writes NFD)."""
    path = folder / name
    if name.isascii() or path.exists():
        return path
    others = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((other for other in others if other.exists()), path)


def _missing(path: Path, folder: Path) -> str:
    """Return the detail of a finding for a missing file, with the one that its name may mean."""
    name = path.relative_to(folder).as_posix()
    similar = unquote(name), path.name, unquote(path.name)
    found = next((other for other in similar if (folder / other).is_file()), None)
    return f"{name} is missing" + (
        f", but the folder has {found}: correct file_name" if found else ""
    )
