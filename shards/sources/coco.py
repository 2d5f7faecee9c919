"""COCO 2017's layout: panoptic and instance annotations of the same photographs.

    train2017/ val2017/                      or images/train2017/ images/val2017/
    annotations/panoptic_train2017.json      its PNGs in annotations/panoptic_train2017/
    annotations/instances_train2017.json     or in panoptic_train2017/ beside annotations/

or any other files in these formats, which `CocoFiles` names.

The split has the images that every annotation file in use lists. An image without annotations is a
negative: it has no instances, or a map that is void everywhere.
"""

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.doctor import Finding, refuse
from shards.errors import DataError, UsageError
from shards.format.manifest import digest
from shards.format.schema import INSTANCES, SEGMENTS, TASKS, key_of
from shards.format.taxonomy import Taxonomy
from shards.sources.coco_categories import require_same_names
from shards.sources.coco_index import CocoIndex, Photo
from shards.sources.coco_item import CocoFiles, CocoItem
from shards.sources.split import Split

SPLITS = ("train", "val")
_KINDS = {  # by annotation file: the tasks that it serves, the member that it becomes
    "panoptic": (("panoptic", "semantic"), SEGMENTS),
    "instances": (("instance",), INSTANCES),
}


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """Return the splits that have an image folder.

    Args:
        root: The folder of the raw data set.
        report: Receives a line for every split that is missing.

    Raises:
        UsageError: There is no split at all.
    """
    found = [split for split in SPLITS if _images(root, split)]
    if not found:
        raise UsageError(
            "the folder has neither train2017/ nor val2017/, not even in images/",
            where=root,
            fix="give the folder that holds COCO's images and annotations/",
        )
    for split in set(SPLITS) - set(found):
        report(f"{split}: there is no {split}2017/, so this split is not built")
    return found


def read(
    root: Path | CocoFiles,
    split: str,
    tasks: Collection[str] | None,
    report: Callable[[str], None],
) -> Split:
    """Read the annotation files of a split; its items read the images later.

    Args:
        root: The folder of the raw data set, or the files of the split.
        split: The name of the split.
        tasks: The tasks to serve; None for all tasks that have annotations.
        report: Receives a line for everything that is missing.

    Raises:
        UsageError: The split does not exist.
        DataError: Annotations are missing, damaged, or contradictory.
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
    findings = [finding for index in indices for finding in index.findings()]
    photos = _common_photos(indices, findings)
    taxonomy = _common_taxonomy(indices, split, report)
    items = _items(files, indices, photos, taxonomy)
    _report_left_out(indices, split, report)
    if void := sum(item.panoptic is not None and not item.panoptic for item in items):
        report(f"{split}: {void} images have no panoptic annotation, so their maps are void")
    served = {task for index in indices for task in _KINDS[index.kind][0]}
    return Split(
        name=split,
        source="coco",
        taxonomy=taxonomy,
        tasks=tuple(task for task in TASKS if task in served & set(tasks or TASKS)),
        truths=tuple(_KINDS[index.kind][1] for index in indices),
        licenses=tuple(indices[0].licenses.values()),
        items=items,
        findings=tuple(dict.fromkeys(findings)),
    )


def _items(
    files: CocoFiles, indices: Sequence[CocoIndex], photos: dict[Any, Photo], taxonomy: Taxonomy
) -> list[CocoItem]:
    """Return an item for every photo; names and rights come from the first index."""
    main = indices[0]
    by_kind = {index.kind: index for index in indices}
    return [
        CocoItem(
            key=key_of(photo.file_name),
            file_name=photo.file_name,
            annotation=digest([main.rights(photo), [index.digests[id] for index in indices]]),
            image_id=str(id),
            size=photo.size,
            rights=main.rights(photo),
            map_name=main.maps.get(id),
            panoptic=_ranges(by_kind.get("panoptic"), id),
            instances=_ranges(by_kind.get("instances"), id),
            source=files,
            taxonomy=taxonomy,
        )
        for id, photo in photos.items()
    ]


def _ranges(index: CocoIndex | None, image_id: Any) -> Sequence[int] | None:
    return None if index is None else index.ranges.get(image_id, array("q"))


def _published(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> CocoFiles:
    """Return the files of a split in COCO 2017's layout that the tasks need."""
    images = _images(root, split)
    if images is None:
        raise UsageError(
            f"the folder has no {split}2017/",
            where=root,
            fix=f"add it, or leave {split} out of --splits",
        )
    files: dict[str, Path] = {}
    for kind, (serves, _) in _KINDS.items():
        path = root / "annotations" / f"{kind}_{split}2017.json"
        if tasks is not None and set(serves).isdisjoint(tasks):
            continue
        if path.is_file():
            files[kind] = path
        elif tasks is not None:
            raise DataError(
                "the file is missing",
                where=path,
                fix=f"add it, or leave {serves[0]} out of --tasks",
            )
        else:
            unserved = " and ".join(serves)
            report(f"{split}: there is no {path.name}, so the set does not serve {unserved}")
    if not files:
        raise DataError(
            f"the folder has neither panoptic_{split}2017.json nor instances_{split}2017.json",
            where=root / "annotations",
            fix=f"add one, or leave {split} out of --splits",
        )
    if "panoptic" in files:
        files["maps"] = _panoptic_folder(root, split)
    return CocoFiles(images, **files)


def _in_use(files: CocoFiles, tasks: Collection[str] | None) -> CocoFiles:
    """Return `files` without those that the tasks do not need."""
    if tasks is None:
        return files
    unused = {}
    for kind, (serves, _) in _KINDS.items():
        needed = set(serves) & set(tasks)
        if needed and getattr(files, kind) is None:
            raise UsageError(
                f"the task {needed.pop()} needs --{kind}",
                where="--tasks",
                fix="give this option, or leave the task out",
            )
        if not needed:
            unused[kind] = None
    return replace(files, **unused)


def _common_photos(indices: Sequence[CocoIndex], findings: list[Finding]) -> dict[Any, Photo]:
    """Return the photos that every annotation file lists, by id.

    Args:
        indices: The annotation files.
        findings: Receives a finding for every image about which the files contradict each other.

    Raises:
        DataError: The files have no image in common.
    """
    first, common = indices[0], {}
    for id, photo in first.photos.items():
        listed = [index.photos.get(id) for index in indices]
        if None in listed:
            continue
        sizes = list(dict.fromkeys(other.size for other in listed if other and other.size))
        if len(sizes) > 1 or any(other and other.file_name != photo.file_name for other in listed):
            what = " and ".join(f"{other[0]!r} of size {other[1]}" for other in listed if other)
            findings.append(
                Finding(photo.file_name, 22, f"the annotation files list image {id} as {what}")
            )
            continue
        common[id] = photo._replace(size=sizes[0] if sizes else None)
    if not common:
        refuse(finding for finding in findings if finding.code != 24)
        raise DataError(
            "the annotation files have no image in common",
            where=" and ".join(index.path.name for index in indices),
            fix="get the files of the same images",
        )
    return common


def _common_taxonomy(
    indices: Sequence[CocoIndex], split: str, report: Callable[[str], None]
) -> Taxonomy:
    """Return the classes of the first annotation file.

    Raises:
        DataError: The categories are malformed, or the files contradict each other.
    """
    found = [index.taxonomy() for index in indices]
    for index, (taxonomy, odd) in zip(indices, found, strict=True):
        require_same_names(found[0][0], taxonomy, (indices[0].path, index.path))
        if odd:
            report(
                f"{split}: the colors of {len(odd)} categories of {index.path.name} are unreadable "
                f"and replaced (the first is that of {odd[0]})"
            )
    return found[0][0]


def _report_left_out(
    indices: Sequence[CocoIndex], split: str, report: Callable[[str], None]
) -> None:
    """Report the images that another file does not list, and the objects that training ignores."""
    for index in indices:
        if others := sum(any(id not in one.photos for one in indices) for id in index.photos):
            report(
                f"{split}: {others} images of {index.path.name} are left out because the other "
                f"file does not list them (--tasks {_KINDS[index.kind][0][0]} keeps them)"
            )
        if not index.objects:
            report(f"{split}: {index.path.name} annotates no object")
        if index.crowds:
            count = f"all {index.objects}" if index.crowds == index.objects else index.crowds
            report(
                f"{split}: {count} objects of {index.path.name} are crowds (iscrowd is 1), which "
                "training leaves out"
            )


def _images(root: Path, split: str) -> Path | None:
    candidates = (root / f"{split}2017", root / "images" / f"{split}2017")
    return next((path for path in candidates if path.is_dir()), None)


def _panoptic_folder(root: Path, split: str) -> Path:
    name = f"panoptic_{split}2017"
    candidates = (root / "annotations" / name, root / name)
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise DataError(
            f"the folder with the maps of {name}.json is missing",
            where=f"{candidates[0]}/",
            fix=f"unpack {name}.zip there, or build with --tasks instance",
        )
    return folder
