"""COCO 2017's raw layout: panoptic and instance truth of the same photographs.

    train2017/ val2017/                      or under images/
    annotations/panoptic_train2017.json      its PNGs in annotations/panoptic_train2017/
    annotations/instances_train2017.json     or in panoptic_train2017/ beside annotations/

Kept are the images that every annotation file in use lists. One without annotations is a negative:
no instances, or a map that is void everywhere.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.doctor import Doctor, Reject
from shards.errors import DataError, UsageError
from shards.manifest import digest
from shards.raw import number_segments, pack, read_ids, read_image, to_rle
from shards.schema import INSTANCES, SEGMENTS, TASKS, Instance, Record, Segment, image_ext, key_of
from shards.sources.split import Split
from shards.taxonomy import Category, Taxonomy, palette

SPLITS = ("train", "val")
_KINDS = {  # annotation file -> tasks it serves, member it becomes
    "panoptic": (("panoptic", "semantic"), SEGMENTS),
    "instances": (("instance",), INSTANCES),
}


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """The splits whose images are there. Raises UsageError if there is none."""
    found = [split for split in SPLITS if _images(root, split)]
    if not found:
        raise UsageError(
            f"{root} has neither train2017/ nor val2017/, nor has images/ in it; "
            "give the folder that holds COCO's images and annotations/"
        )
    for split in set(SPLITS) - set(found):
        report(f"{split}: no {split}2017/, so there will be no such set")
    return found


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """Read the annotation files of a split; pictures wait for `load` of its items.

    With `tasks` None all truth there is gets used, and `report` hears what is missing. Raises
    UsageError for a split that is not there, DataError for truth that is missing or contradictory.
    """
    images = _images(root, split)
    if images is None:
        raise UsageError(f"{root} has no {split}2017/; add it, or leave {split} out of --splits")
    truths = {}
    for kind, (serves, _) in _KINDS.items():
        path = root / "annotations" / f"{kind}_{split}2017.json"
        if tasks is not None and set(serves).isdisjoint(tasks):
            continue
        if path.is_file():
            truths[kind] = _Truth.read(path, kind)
        elif tasks is not None:
            raise DataError(f"{path} is missing; add it, or leave {serves[0]} out of --tasks")
        else:
            report(f"{split}: no {path.name}, so the set will not serve {', '.join(serves)}")
    if not truths:
        raise DataError(
            f"{root / 'annotations'} has neither panoptic_{split}2017.json nor "
            f"instances_{split}2017.json; add one, or leave {split} out of --splits"
        )
    panoptic, instances = truths.get("panoptic"), truths.get("instances")
    maps = _panoptic_folder(root, split) if panoptic else None
    main = panoptic or instances
    taxonomy = main.taxonomy()
    items = [
        CocoItem(
            key=key_of(image["file_name"]),
            file_name=image["file_name"],
            image_path=images / image["file_name"],
            image=image,
            taxonomy=taxonomy,
            rights=main.rights(image),
            maps=maps,
            panoptic=panoptic and panoptic.annotations.get(image_id, []),
            instances=instances and instances.annotations.get(image_id, []),
        )
        for image_id, image in _kept(list(truths.values()), split, report).items()
    ]
    if void := sum(item.panoptic == [] for item in items):
        report(f"{split}: {void} images have no panoptic annotation, so their maps are void")
    served = {task for kind in truths for task in _KINDS[kind][0]}
    return Split(
        name=split,
        source="coco",
        taxonomy=taxonomy,
        tasks=tuple(task for task in TASKS if task in served & set(tasks or TASKS)),
        truths=tuple(_KINDS[kind][1] for kind in truths),
        licence=main.licences,
        items=items,
    )


@dataclass(frozen=True, slots=True)
class _Truth:
    """An annotation file: images by id, annotations by image id."""

    path: Path
    kind: str
    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]
    licences: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path, kind: str) -> "_Truth":
        annotations = defaultdict(list)
        try:
            document = json.loads(path.read_bytes())
            images = {image["id"]: image for image in document["images"]}
            for annotation in document["annotations"]:
                annotations[annotation["image_id"]].append(annotation)
            listed, categories = len(document["images"]), document["categories"]
            licences = tuple(document.get("licenses", ()))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is no COCO annotation file ({error!r}); get it anew"
            ) from error
        if len(images) < listed:
            raise DataError(f"{path} lists an image id twice; keep one entry of each")
        return cls(path, kind, images, dict(annotations), categories, licences)

    def taxonomy(self) -> Taxonomy:
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

    def rights(self, image: dict[str, Any]) -> dict[str, str]:
        """What the file says of an image's licence and origin."""
        licence = next((one for one in self.licences if one["id"] == image.get("license")), {})
        said = {"licence": licence.get("url"), "attribution": image.get("flickr_url")}
        return {name: value for name, value in said.items() if value}


def _kept(
    truths: list[_Truth], split: str, report: Callable[[str], None]
) -> dict[int, dict[str, Any]]:
    """The images that every file lists, by id. Raises DataError where files contradict."""
    kept = truths[0].images
    for truth in truths:
        for image_id in kept.keys() & truth.images.keys():
            for name in ("file_name", "width", "height"):
                here, there = kept[image_id].get(name), truth.images[image_id].get(name)
                if here is None or here != there:
                    raise DataError(
                        f"{truth.path}: image {image_id} has {name} {there!r}, "
                        f"{truths[0].path.name} says {here!r}; get both files of one release"
                    )
        kept = {image_id: image for image_id, image in kept.items() if image_id in truth.images}
    if not kept:
        names = " and ".join(truth.path.name for truth in truths)
        raise DataError(f"{names} list no image together; get the files of the same images")
    for truth in truths:
        if alone := len(truth.images) - len(kept):
            report(
                f"{split}: {alone} images of {truth.path.name} are left out, "
                f"for they have no other truth (--tasks {_KINDS[truth.kind][0][0]} keeps them)"
            )
        if strays := len(truth.annotations.keys() - truth.images.keys()):
            report(f"{split}: {truth.path.name} annotates {strays} images that it does not list")
    return kept


@dataclass(frozen=True, slots=True)
class CocoItem:
    """A raw COCO sample: its entry in `images` and its annotations, None where not in use."""

    key: str
    file_name: str
    image_path: Path
    image: dict[str, Any]
    taxonomy: Taxonomy
    rights: dict[str, str]
    maps: Path | None
    panoptic: list[dict[str, Any]] | None
    instances: list[dict[str, Any]] | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the panoptic map if there is one."""
        return self.image_path, *(self._map(annotation) for annotation in self.panoptic or ())

    def _map(self, annotation: dict[str, Any]) -> Path:
        name = annotation.get("file_name")
        key_of(name)  # refuses a name that leaves the folder
        return self.maps / name

    @property
    def annotation(self) -> str:
        """A digest of what the annotation files say of the image."""
        return digest([self.image, self.rights, self.panoptic, self.instances])

    def load(self, doctor: Doctor) -> Record:
        """Read and check the sample: defects go to `doctor`, or are raised as Reject."""
        try:
            return self._load(doctor)
        except (KeyError, TypeError) as error:
            raise Reject(22, f"its annotation lacks {error}") from error

    def _load(self, doctor: Doctor) -> Record:
        width, height = self.image["width"], self.image["height"]
        image, *_ = read_image(self.image_path, (width, height), doctor)
        segments = segments_map = instances = layers = None
        if self.panoptic is not None:
            segments, segments_map = self._load_segments(width, height)
        if self.instances is not None:
            instances, layers = self._load_instances(width, height)
        return Record(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source="coco",
            image_id=str(self.image["id"]),
            width=width,
            height=height,
            segments=segments,
            segments_map=segments_map,
            instances=instances,
            layers=layers,
            rights=self.rights,
        )

    def _load_segments(self, width: int, height: int) -> tuple[list[Segment], np.ndarray]:
        if not self.panoptic:
            return [], np.zeros((height, width), np.uint8)
        if len(self.panoptic) > 1:
            raise Reject(22, f"{len(self.panoptic)} panoptic annotations of one image")
        ids = read_ids(self._map(self.panoptic[0]), (width, height))
        segments = [Segment(**self._common(e)) for e in self.panoptic[0]["segments_info"]]
        return segments, number_segments(ids, [segment.id for segment in segments])

    def _load_instances(self, width: int, height: int) -> tuple[list[Instance], np.ndarray]:
        rles = [self._rle(entry, width, height) for entry in self.instances]
        largest_first = sorted(
            range(len(rles)), key=lambda i: (-self.instances[i]["area"], self.instances[i]["id"])
        )
        layers, places = pack(rles, largest_first, height, width)
        instances = [
            Instance(**self._common(entry), layer=layer, value=value)
            for entry, (layer, value) in zip(self.instances, places, strict=True)
        ]
        if stuff := [i.id for i in instances if not self.taxonomy.categories[i.category].isthing]:
            raise Reject(13, f"instance {stuff[0]} is of a stuff category")
        return instances, layers

    def _rle(self, entry: dict[str, Any], width: int, height: int) -> dict[str, Any]:
        try:
            return to_rle(entry["segmentation"], width, height)
        except Reject as reject:
            raise Reject(reject.code, f"instance {entry['id']}: {reject.detail}") from None

    def _category(self, id: int) -> int:
        try:
            return self.taxonomy.index(id)
        except DataError as error:
            raise Reject(13, f"category id {id} is not in the list") from error

    def _common(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": entry["id"],
            "category": self._category(entry["category_id"]),
            "iscrowd": entry.get("iscrowd", 0),
            "area": entry["area"],
            "bbox": entry["bbox"],
        }


def _images(root: Path, split: str) -> Path | None:
    candidates = (root / f"{split}2017", root / "images" / f"{split}2017")
    return next((path for path in candidates if path.is_dir()), None)


def _panoptic_folder(root: Path, split: str) -> Path:
    name = f"panoptic_{split}2017"
    candidates = (root / "annotations" / name, root / name)
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise DataError(
            f"{candidates[0]}/ with the maps of {name}.json is missing; unpack {name}.zip there, "
            "or build with --tasks instance"
        )
    return folder
