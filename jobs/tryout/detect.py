"""Find out what kind of labels a folder holds, and which of its files make which split."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jobs.tryout.peek import Peek, peek
from shards.build.options import BuildOptions
from shards.errors import DataError, UsageError, some_of
from shards.sources import coco, folder, labelme, yolo
from shards.sources.coco_item import CocoFiles
from shards.sources.outlines import SPLITS, files_of, split_of

HELD_OUT = 0.15  # the share of the photographs
SEE = "see docs/try.md"
_PARTS = re.compile(r"[^a-zA-Z]+")


class Part(NamedTuple):
    """What one call of `build` reads.

    Attributes:
        root: The folder, or the files of one split.
        split: The name of the split.
    """

    root: Path | CocoFiles
    split: str


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        source: The name of the source that reads it.
        words: What it is, for the user.
        train: What is trained on.
        val: What is scored; None if it is to be held out of `train`.
    """

    source: str
    words: str
    train: Part
    val: Part | None

    @property
    def sets(self) -> tuple[str, str]:
        """The names of the shard sets to train on and to score."""
        return (self.train.split, self.val.split) if self.val else ("train", "val")

    def options(self, out: Path) -> list[BuildOptions]:
        """Return the options of the builds that write the shard sets to `out`."""
        train = BuildOptions(self.source, self.train.root, out, (self.train.split,))
        if self.val is None:
            return [replace(train, hold_out=HELD_OUT)]
        if isinstance(self.train.root, CocoFiles):
            return [train, replace(train, root=self.val.root, splits=(self.val.split,))]
        return [replace(train, splits=(self.train.split, self.val.split))]


def detect(root: Path) -> Found:
    """Return what a folder holds.

    Args:
        root: The folder.

    Raises:
        UsageError: It is not a folder.
        DataError: It has no images or no labels, labels of several kinds, or labels that cannot be
            trained on.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder", where="FOLDER", fix="give a folder of images")
    images = [name for name, _ in files_of(root, _ignore)]
    peeked = [peek(path) for _, path in files_of(root, _ignore, ".json")]
    by_kind = defaultdict(list)
    for one in peeked:
        by_kind[one.kind].append(one)
    cocos = by_kind["instances"] + by_kind["panoptic"]
    has_yolo = bool(yolo.pairs(root, _ignore)) and not cocos
    label_maps = _label_maps(root)
    kinds = {
        f"COCO JSON ({_names(cocos, root)})": cocos,
        f"LabelMe JSON ({_names(by_kind['labelme'], root)})": by_kind["labelme"],
        f"label maps ({label_maps})": label_maps,
        f"YOLO's label files ({yolo.names_file(root) or root / '*.txt'})": has_yolo,
    }
    present = [words for words, found in kinds.items() if found]
    if len(present) > 1:
        raise DataError(
            f"the folder has labels of several kinds: {' and '.join(present)}",
            where=root,
            fix="move those that are not to be used to another folder",
        )
    if not images:
        what = (
            f"the folder has {present[0]}, but no image" if present else "the folder has no image"
        )
        raise DataError(what, where=root, fix=f"add the images to it, {SEE}")
    if not present:
        raise _without_labels(root, images, peeked)
    if cocos:
        return _of_coco(root, cocos)
    if label_maps:
        return _of_splits(root, "folder", present[0], folder.splits(root, _ignore))
    if by_kind["labelme"]:
        return _of_splits(root, "labelme", present[0], labelme.splits(root, _ignore))
    _require_outlines(root)
    return _of_splits(root, "yolo", present[0], yolo.splits(root, _ignore))


def _ignore(line: str) -> None:
    """Leave out a line of a report: `build` reports it again."""


def _names(found: Sequence[Peek], root: Path) -> str:
    return some_of([one.path.relative_to(root).as_posix() for one in found], 2)


def _label_maps(root: Path) -> str:
    """Return where the label maps of the layout of `build folder` are, "" if there are none."""
    for name in ("classes.yaml", "labels"):
        path = root / name
        if path.is_file() or any(True for _ in files_of(path, _ignore, ".png")):
            return name
    return ""


def _without_labels(root: Path, images: Sequence[str], peeked: Sequence[Peek]) -> DataError:
    """Return the error for a folder of images with nothing that can be trained on."""
    for one in peeked:
        if one.error:
            return one.error
    fix = f"draw the outlines of objects, for example with LabelMe, {SEE}"
    return DataError(f"the folder has {len(images)} images and no labels", where=root, fix=fix)


def _require_outlines(root: Path) -> None:
    """Raise DataError if the first label file of YOLO with an object has boxes."""
    for _, _, path in yolo.pairs(root, _ignore):
        try:
            rows = yolo.rows(path)
        except (OSError, ValueError):  # reading the sample rejects it
            continue
        if rows:
            if len(rows[0]) == 5:
                fix = "export outlines (YOLO segmentation) instead of boxes"
                raise DataError("the label files hold boxes, not outlines", where=path, fix=fix)
            return


def _of_splits(root: Path, source: str, words: str, names: Sequence[str]) -> Found:
    """Return what a source finds that reads all splits from one root."""
    train, val = _chosen({name: SPLITS.get(name.lower(), name) for name in names}, root)
    return Found(source, words, Part(root, train), Part(root, val) if val else None)


def _chosen(kinds: dict[str, str], root: Path) -> tuple[str, str | None]:
    """Return the splits to train on and to score; None if the latter is to be held out.

    Args:
        kinds: The names of the splits, and for each `train`, `val`, `test`, or another name.
        root: The folder.

    Raises:
        DataError: There are several, and none of them is for training.
    """
    by_kind = {kind: name for name, kind in reversed(kinds.items())}
    val = by_kind.get("val") or by_kind.get("test")
    train = by_kind.get("train") or next((name for name in kinds if name != val), None)
    if train is None:
        return next(iter(kinds)), None
    others = [name for name, kind in kinds.items() if kind not in ("train", "val", "test")]
    if len(others) > 1:
        what = f"which of {', '.join(kinds)} are to be trained on is not clear"
        raise DataError(what, where=root, fix="name two of them train and val")
    return train, val


def _of_coco(root: Path, found: Sequence[Peek]) -> Found:
    """Return what the annotation files in COCO's formats make.

    Raises:
        DataError: Two of them have the same truth of one split, or their images are missing.
    """
    words = f"COCO JSON ({_names(found, root)})"
    published = [
        split
        for split in coco.SPLITS
        if any(one.path.name.endswith(f"_{split}2017.json") for one in found)
        and any((root / folder / f"{split}2017").is_dir() for folder in (".", "images"))
        and (root / "annotations").is_dir()
    ]
    if published:
        return _of_splits(root, "coco", words, published)
    by_split: dict[str, dict[str, Peek]] = defaultdict(dict)
    for one in found:
        split = _split_of_json(one.path.relative_to(root))
        other = by_split[split].setdefault(one.kind, one)
        if other is not one:
            raise DataError(
                f"{_names([other, one], root)} both have the {one.kind} of the split {split}",
                where=root,
                fix="remove one, or name them train.json and val.json",
            )
    train, val = _chosen({split: split for split in by_split}, root)
    parts = [Part(_files(root, name, by_split[name]), name) for name in (train, val) if name]
    return Found("coco", words, parts[0], parts[1] if val else None)


def _split_of_json(path: Path) -> str:
    """Return the split that the name of an annotation file, or else of a folder, tells."""
    for word in _PARTS.split(path.stem):
        if word.lower() in SPLITS:
            return SPLITS[word.lower()]
    return split_of(path.as_posix())


def _files(root: Path, split: str, kinds: dict[str, Peek]) -> CocoFiles:
    """Return the files of a split."""
    panoptic, instances = kinds.get("panoptic"), kinds.get("instances")
    first = panoptic or instances
    assert first, "a split has an annotation file"
    images = _folder_of(root, first.image, split, first.path)
    maps = panoptic and _folder_of(root, panoptic.map_name, split, panoptic.path, images)
    return CocoFiles(images, instances and instances.path, panoptic and panoptic.path, maps)


def _folder_of(root: Path, name: str, split: str, file: Path, images: Path | None = None) -> Path:
    """Return the folder below which an annotation file means a name.

    Args:
        root: The folder of everything.
        name: The name of an image or of a map.
        split: The split of the annotation file.
        file: The annotation file.
        images: Of a map, the folder of the images, which may have files of the same names.

    Raises:
        DataError: No folder has a file of this name.
    """
    end, ending = f"/{name}", Path(name).suffix.lower()
    folders = [
        Path(str(path)[: -len(end)])
        for _, path in files_of(root, _ignore, *([ending] if ending else []))
        if name and str(path).endswith(end)
    ]
    if not folders:
        what = f"it names {name!r}, which is not below {root}" if name else "it names no file"
        raise DataError(what, where=file, fix="add the files that it names")

    def distance(folder: Path) -> tuple[bool, bool, bool, bool, int, str]:
        relative = folder.relative_to(root) / "x"
        return (
            folder == images,
            split_of(relative.as_posix()) != split,
            ("panoptic" in folder.name) != (images is not None),
            file.stem not in folder.name and folder.name not in file.stem,
            len(relative.parts),
            str(folder),
        )

    return min(folders, key=distance)
