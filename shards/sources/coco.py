"""COCO 2017's raw layout: panoptic and instance truth of the same photographs.

    train2017/ val2017/                      or under images/
    annotations/panoptic_train2017.json      its PNGs in annotations/panoptic_train2017/
    annotations/instances_train2017.json     or in panoptic_train2017/ beside annotations/

or one's own files in these formats, named by CocoFiles.

Kept are the images that every annotation file in use lists. One without annotations is a negative:
no instances, or a map that is void everywhere.
"""

from array import array
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.format.manifest import digest
from shards.format.schema import INSTANCES, SEGMENTS, TASKS, key_of
from shards.sources.coco_index import CocoIndex, Photo
from shards.sources.coco_item import CocoFiles, CocoItem
from shards.sources.split import Split

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
    root: Path | CocoFiles,
    split: str,
    tasks: Collection[str] | None,
    report: Callable[[str], None],
) -> Split:
    """Read the annotation files of a split; pictures wait for `load` of its items.

    With `tasks` None all truth there is gets used, and `report` hears what is missing. Raises
    UsageError for a split that is not there, DataError for truth that is missing, damaged or
    contradictory.
    """
    if isinstance(root, CocoFiles):
        files = _in_use(root, tasks)
    else:
        files = _published(root, split, tasks, report)
    indices = [
        CocoIndex.read(path, kind)
        for kind, path in (("panoptic", files.panoptic), ("instances", files.instances))
        if path
    ]
    photos = _kept(indices, split, report)
    main = indices[0]
    taxonomy = main.taxonomy()
    by_kind = {index.kind: index for index in indices}
    items = [
        CocoItem(
            key=key_of(photo.file_name),
            file_name=photo.file_name,
            annotation=digest([main.rights(photo), [index.digests[id] for index in indices]]),
            image_id=str(id),
            width=photo.width,
            height=photo.height,
            rights=main.rights(photo),
            map_name=main.maps.get(id),
            panoptic=_places(by_kind.get("panoptic"), id),
            instances=_places(by_kind.get("instances"), id),
            source=files,
            taxonomy=taxonomy,
        )
        for id, photo in photos.items()
    ]
    if void := sum(item.panoptic is not None and not item.panoptic for item in items):
        report(f"{split}: {void} images have no panoptic annotation, so their maps are void")
    served = {task for kind in by_kind for task in _KINDS[kind][0]}
    return Split(
        name=split,
        source="coco",
        taxonomy=taxonomy,
        tasks=tuple(task for task in TASKS if task in served & set(tasks or TASKS)),
        truths=tuple(_KINDS[kind][1] for kind in by_kind),
        licence=tuple(main.licences),
        items=items,
        findings=tuple(dict.fromkeys(one for index in indices for one in index.findings())),
    )


def _published(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> CocoFiles:
    """The files of a split of COCO 2017 that the tasks need."""
    images = _images(root, split)
    if images is None:
        raise UsageError(f"{root} has no {split}2017/; add it, or leave {split} out of --splits")
    files: dict[str, Path] = {}
    for kind, (serves, _) in _KINDS.items():
        path = root / "annotations" / f"{kind}_{split}2017.json"
        if tasks is not None and set(serves).isdisjoint(tasks):
            continue
        if path.is_file():
            files[kind] = path
        elif tasks is not None:
            raise DataError(f"{path} is missing; add it, or leave {serves[0]} out of --tasks")
        else:
            report(f"{split}: no {path.name}, so the set will not serve {', '.join(serves)}")
    if not files:
        raise DataError(
            f"{root / 'annotations'} has neither panoptic_{split}2017.json nor "
            f"instances_{split}2017.json; add one, or leave {split} out of --splits"
        )
    if "panoptic" in files:
        files["maps"] = _panoptic_folder(root, split)
    return CocoFiles(images, **files)


def _in_use(files: CocoFiles, tasks: Collection[str] | None) -> CocoFiles:
    """Those of the files that the tasks need."""
    if tasks is None:
        return files
    unused = {}
    for kind, (serves, _) in _KINDS.items():
        needed = set(serves) & set(tasks)
        if needed and getattr(files, kind) is None:
            raise UsageError(f"--tasks {needed.pop()} needs --{kind}; give it, or leave it out")
        if not needed:
            unused[kind] = None
    return replace(files, **unused)


def _places(index: CocoIndex | None, image_id: Any) -> array | None:
    return index and index.places.get(image_id, array("q"))


def _kept(indices: list[CocoIndex], split: str, report: Callable[[str], None]) -> dict[Any, Photo]:
    """The photos that every file lists, by id. Raises DataError where files contradict."""
    first = indices[0]
    kept = first.photos
    for index in indices[1:]:
        for image_id in kept.keys() & index.photos.keys():
            here, there = kept[image_id][:3], index.photos[image_id][:3]
            if here != there:
                raise DataError(
                    f"{index.path}: image {image_id} is {there}, {first.path.name} says {here}; "
                    "get both files of one release"
                )
        kept = {id: photo for id, photo in kept.items() if id in index.photos}
    if not kept:
        names = " and ".join(index.path.name for index in indices)
        raise DataError(f"{names} list no image together; get the files of the same images")
    for index in indices:
        if alone := len(index.photos) - len(kept):
            report(
                f"{split}: {alone} images of {index.path.name} are left out, "
                f"for they have no other truth (--tasks {_KINDS[index.kind][0][0]} keeps them)"
            )
        if strays := index.strays():
            report(f"{split}: {index.path.name} annotates {strays} images that it does not list")
    return kept


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
