"""Read and check one sample of a data set in COCO's formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.format.schema import Instance, Sample, Segment, image_ext
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_ids, read_image
from shards.raw.json_entries import read_ranges
from shards.raw.masks import check_area, number_segments, pack, to_rle
from shards.sources.coco_entry import entry_fields, reject_malformed


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
        width: The image's width in pixels.
        height: The image's height in pixels.
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
    width: int
    height: int
    rights: dict[str, str]
    map_name: str | None
    panoptic: Sequence[int] | None
    instances: Sequence[int] | None
    source: CocoFiles
    taxonomy: Taxonomy

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the panoptic map if there is one."""
        image = self.source.images / self.file_name
        if self.map_name is None:
            return (image,)
        assert self.source.maps, "map names come from a panoptic file, which has a folder of maps"
        return image, self.source.maps / self.map_name

    def load(self, doctor: Doctor) -> Sample:
        """Read and check the sample.

        Args:
            doctor: Receives the findings that keep the sample in the set.

        Raises:
            Reject: The sample has a defect that excludes it from the set.
        """
        size = self.width, self.height
        image, *_ = read_image(self.files[0], size, doctor)
        segments = segments_map = instances = layers = None
        if self.panoptic is not None:
            segments, segments_map = self._load_segments(self.panoptic, doctor)
        if self.instances is not None:
            instances, layers = self._load_instances(self.instances, doctor)
        return Sample(
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

    def _load_segments(
        self, ranges: Sequence[int], doctor: Doctor
    ) -> tuple[list[Segment], np.ndarray]:
        """Read the segments and their map, `uint8` or `uint16 [H, W]`."""
        if not ranges:
            return [], np.zeros((self.height, self.width), np.uint8)
        if len(ranges) > 2:
            raise Reject(22, f"the image has {len(ranges) // 2} panoptic annotations")
        path = self.source.panoptic
        assert path
        (annotation,) = read_ranges(path, ranges)
        ids = read_ids(self.files[1], (self.width, self.height))
        with reject_malformed(path, ranges[0]):
            entries = annotation["segments_info"]
            segments = [Segment(**entry_fields(entry, self.taxonomy)) for entry in entries]
            numbered, areas = number_segments(ids, [segment.id for segment in segments])
            for segment, area in zip(segments, areas, strict=True):
                check_area(f"segment {segment.id}", segment.area, area, doctor)
        return segments, numbered

    def _load_instances(
        self, ranges: Sequence[int], doctor: Doctor
    ) -> tuple[list[Instance], np.ndarray]:
        """Read the instances and their masks in layers, `uint8` or `uint16 [n, H, W]`."""
        path = self.source.instances
        assert path
        common, rles = [], []
        for entry, byte in zip(read_ranges(path, ranges), ranges[::2], strict=True):
            with reject_malformed(path, byte):
                name = f"instance {entry['id']}"
                common.append(entry_fields(entry, self.taxonomy))
                if not self.taxonomy.categories[common[-1]["category"]].isthing:
                    raise Reject(13, f"{name} is of a stuff category")
                rle = to_rle(name, entry["segmentation"], self.width, self.height, doctor)
                check_area(name, entry["area"], int(coco_mask.area(rle)), doctor)
                rles.append(rle)
        # The order decides the layers and with them the bytes of the shard; ids break ties
        largest_first = sorted(
            range(len(rles)), key=lambda i: (-common[i]["area"], common[i]["id"])
        )
        layers, positions = pack(rles, largest_first, self.height, self.width)
        instances = [
            Instance(**fields, layer=layer, value=value)
            for fields, (layer, value) in zip(common, positions, strict=True)
        ]
        return instances, layers
