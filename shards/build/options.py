"""The options of `./launch.sh build`, checked when an instance is made."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shards.errors import UsageError
from shards.files import is_url
from shards.format.schema import TASKS
from shards.sources import ade20k, cityscapes, coco, folder, labelme, vistas, yolo
from shards.sources.coco_item import CocoFiles

SOURCES = {
    "coco": coco,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "vistas": vistas,
    "folder": folder,
    "labelme": labelme,
    "yolo": yolo,
}


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Except for `jobs`, `strict`, and `work`, the bytes of the shards are a function of the options,
    the raw files, and the versions of the libraries.

    Attributes:
        source: The layout of the raw data, a key of SOURCES.
        root: The folder of the raw data set. For `coco`, also the files of one split, which
            `splits` then names.
        out: The folder, or the URL that fsspec can write to, for one shard set per split.
        splits: The splits to build. Default: all in `root`.
        limit: Keep the first images by key, this many per split.
        jobs: Number of processes. Default: the number of CPUs.
        tasks: Restrict the truth to that of these tasks. Default: everything the data set has.
        shards: Number of shards per split. Default: the least power of two with at most 128 MiB of
            raw files per shard.
        drop_empty: Leave out images without truth.
        strict: Stop at the first image that the doctor rejects.
        hold_out: Divide the only split into train and val, which has this share of the photographs.
        work: If `out` is a URL, the folder where shards wait to be sent.

    Raises:
        UsageError: An option has a wrong value, or a file or folder is missing.
    """

    source: str
    root: Path | CocoFiles
    out: Path | str
    splits: Sequence[str] = ()
    limit: int | None = None
    jobs: int | None = None
    tasks: Sequence[str] = ()
    shards: int | None = None
    drop_empty: bool = False
    strict: bool = False
    hold_out: float | None = None
    work: Path | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"unknown source {self.source!r}; known are {', '.join(SOURCES)}")
        if isinstance(self.root, CocoFiles):
            _check_files(self.root, self.source, self.splits)
        elif not self.root.is_dir():
            raise UsageError(
                f"{self.root} is not a folder",
                where="--root",
                fix="give the folder of the raw data set",
            )
        for name in ("limit", "jobs", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{value} is too small", where=f"--{name}", fix="give 1 or more")
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            fix = "give a share between 0 and 1, such as 0.1"
            raise UsageError(f"{self.hold_out} is not a share", where="--hold-out", fix=fix)
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise UsageError(
                f"unknown task {unknown[0]!r}; known are {', '.join(TASKS)}", where="--tasks"
            )

    @property
    def module(self) -> ModuleType:
        """The module that reads the source."""
        return SOURCES[self.source]

    @property
    def url(self) -> str | None:
        """`out` if it is a URL, None if it is a folder."""
        return str(self.out).rstrip("/") if is_url(self.out) else None


def _check_files(files: CocoFiles, source: str, splits: Sequence[str]) -> None:
    """Raise UsageError for a file that is missing or not given."""
    if source != "coco":
        raise UsageError(
            f"only coco can be built from files of one split, not {source}",
            where="--images",
            fix="give --root",
        )
    if not (files.instances or files.panoptic):
        raise UsageError(
            "images need annotations", where="--images", fix="give --instances or --panoptic"
        )
    if bool(files.panoptic) != bool(files.maps):
        raise UsageError(
            "one of the options is missing",
            where="--panoptic, --maps",
            fix="give the JSON and the folder of its PNGs",
        )
    for name in ("instances", "panoptic"):
        if (path := getattr(files, name)) and not path.is_file():
            raise UsageError(
                f"{path} is not a file", where=f"--{name}", fix="give a JSON in COCO's format"
            )
    for name in ("images", "maps"):
        if (path := getattr(files, name)) and not path.is_dir():
            raise UsageError(
                f"{path} is not a folder",
                where=f"--{name}",
                fix="give the folder of the file names",
            )
    if len(splits) != 1 or not re.fullmatch(r"\w[\w.-]*", splits[0]):
        raise UsageError(
            f"{','.join(splits)!r} is not a name for a folder", where="--split", fix="give one name"
        )
