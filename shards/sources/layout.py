"""Data sets of images with PNGs of truth beside them: where the files are, and who lacks which."""

import json
from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.doctor import Doctor
from shards.errors import DataError, UsageError
from shards.format.manifest import digest
from shards.format.schema import (
    INSTANCES,
    SEGMENTS,
    SEMANTIC,
    TASKS,
    Record,
    image_ext,
    key_of,
    rights_of,
)
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_image
from shards.sources.label_maps import map_size
from shards.sources.split import Split

_LISTED = 20  # names in a line of the report


def table(name: str) -> list[dict[str, Any]]:
    """A published label table, for a data set that comes without one."""
    return json.loads((Path(__file__).parent / "tables" / f"{name}.json").read_bytes())


@dataclass(frozen=True, slots=True)
class Files:
    """A sample's files, which may be missing: the image, named as in its folder, maps by kind."""

    name: str
    file_name: str
    image: Path
    maps: dict[str, Path]


@dataclass(frozen=True, slots=True)
class MapItem:
    """A raw sample with its truth in label maps.

    `truth(item, size, doctor)` makes the Record's fields of truth, given the image's width and
    height. `said` is what its truth depends on beyond its maps, in plain JSON; `places` are the
    bytes (start, end, ...) of its annotations in a file of the whole split, None without any.
    """

    source: str
    raw: Files
    image_id: str
    truth: Callable[["MapItem", tuple[int, int], Doctor], dict[str, Any]]
    said: Any
    places: array | None
    rights: dict[str, str]

    @property
    def key(self) -> str:
        """The image's name as a key."""
        return key_of(self.raw.file_name)

    @property
    def file_name(self) -> str:
        """The image's name in its folder."""
        return self.raw.file_name

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then its maps."""
        return self.raw.image, *self.raw.maps.values()

    @property
    def annotation(self) -> str:
        """A digest of what the truth depends on, its maps apart."""
        return digest([self.said, self.rights])

    def load(self, doctor: Doctor) -> Record:
        """Read and check the sample: defects go to `doctor`, or are raised as Reject."""
        size = map_size(next(iter(self.raw.maps.values())))
        image, width, height = read_image(self.raw.image, size, doctor, mismatch=9)
        return Record(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source=self.source,
            image_id=self.image_id,
            width=width,
            height=height,
            rights=self.rights,
            **self.truth(self, (width, height), doctor),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """How a publisher lays out a data set.

    `splits` are folders by our name of a split. A file is `folder/NAME + ending`, its NAME common
    to image and maps; `{}` in a folder stands for the split's. `images` are a folder and endings,
    `maps` by kind a folder and an ending. For a task, `needs` are the kinds of maps that its truth
    is made of, `members` what it becomes.
    """

    source: str
    splits: Mapping[str, str]
    images: tuple[str, tuple[str, ...]]
    maps: Mapping[str, tuple[str, str]]
    needs: Mapping[str, Collection[str]]
    members: Mapping[str, str] = field(
        default_factory=lambda: dict(zip(TASKS, (SEGMENTS, SEGMENTS, SEMANTIC), strict=True))
    )

    def found(self, root: Path, report: Callable[[str], None]) -> list[str]:
        """The splits whose images are there. Raises UsageError if there is none."""
        folders = {split: self._folder(root, split, self.images[0]) for split in self.splits}
        found = [split for split, folder in folders.items() if folder.is_dir()]
        if not found:
            raise UsageError(
                f"there is no folder {' or '.join(map(str, folders.values()))}; "
                f"give the folder of {self.source}'s raw data as --root"
            )
        for split in [split for split in folders if split not in found]:
            report(f"{split}: no {folders[split]}, so there will be no such set")
        return found

    def gather(
        self,
        root: Path,
        split: str,
        tasks: Collection[str] | None,
        report: Callable[[str], None],
    ) -> tuple[tuple[str, ...], list[Files]]:
        """The tasks a split serves, and the files of its samples.

        With `tasks` None those are served for which no image lacks a map, and `report` hears who
        does. (Images without the first kind of map are not asked: the doctor leaves them out.)
        Raises UsageError for a split that is not there, DataError for a task without any truth.
        """
        folder = self._folder(root, split, self.images[0]) if split in self.splits else root / split
        if not folder.is_dir():
            raise UsageError(f"there is no {folder}; add it, or leave {split} out of --splits")
        images, others = _listing(folder, self.images[1])
        if others:
            report(f"{split}: {folder} has files that are no {self.images[1][0]}: {_some(others)}")
        where = {kind: self._folder(root, split, place) for kind, (place, _) in self.maps.items()}
        maps = {k: dict(_listing(where[k], (ending,))[0]) for k, (_, ending) in self.maps.items()}
        if tasks is None:
            tasks = self._complete(split, [name for name, _ in images], maps, report)
            if not tasks:
                raise DataError(
                    f"{split}: no task has its truth in {', '.join(map(str, where.values()))}; "
                    f"unpack the label maps there, or leave {split} out of --splits"
                )
        needed = {kind: task for task in tasks for kind in self.needs[task]}
        for kind, task in needed.items():
            if not maps[kind]:
                raise DataError(
                    f"{where[kind]} holds no *{self.maps[kind][1]}; unpack {kind} there, "
                    f"or leave {task} out of --tasks, or {split} out of --splits"
                )
        missing = {name for kind in needed for name in maps[kind]} - {name for name, _ in images}
        ending = self.images[1][0]
        if images:
            name, path = images[0]
            ending = path.relative_to(folder).as_posix().removeprefix(name)
        images += [(name, folder / f"{name}{ending}") for name in sorted(missing)]
        return tuple(task for task in TASKS if task in tasks), [
            Files(
                name=name,
                file_name=path.relative_to(folder).as_posix(),
                image=path,
                maps={k: where[k] / f"{name}{self.maps[k][1]}" for k in self.maps if k in needed},
            )
            for name, path in images
        ]

    def split(
        self,
        name: str,
        tasks: tuple[str, ...],
        taxonomy: Taxonomy,
        files: list[Files],
        truth: Callable[[MapItem, tuple[int, int], Doctor], dict[str, Any]],
        *,
        licence: Mapping[str, str],
        image_id: Callable[[str], str] = str,
        said: Callable[[str], Any] = lambda name: None,
        places: Callable[[str], array | None] = lambda name: None,
    ) -> Split:
        """The split of these samples; `image_id`, `said` and `places` give those of a name's.

        Of `licence` the manifest has all, a sample its `rights_of`.
        """
        rights = rights_of(licence)
        members = {self.members[task] for task in tasks}
        return Split(
            name=name,
            source=self.source,
            taxonomy=taxonomy,
            tasks=tasks,
            truths=tuple(m for m in (SEGMENTS, INSTANCES, SEMANTIC) if m in members),
            licence=(dict(licence),),
            items=[
                MapItem(
                    source=self.source,
                    raw=file,
                    image_id=image_id(file.name),
                    truth=truth,
                    said=said(file.name),
                    places=places(file.name),
                    rights=rights,
                )
                for file in files
            ],
        )

    def _folder(self, root: Path, split: str, place: str) -> Path:
        return root / place.format(self.splits[split])

    def _complete(
        self,
        split: str,
        names: Collection[str],
        maps: Mapping[str, Collection[str]],
        report: Callable[[str], None],
    ) -> list[str]:
        """The tasks whose truth no image lacks."""
        first = next((found for found in maps.values() if found), ())
        names = [name for name in names if name in first]
        complete = []
        for task, kinds in self.needs.items():
            lacking = [name for name in names if any(name not in maps[kind] for kind in kinds)]
            if names and not lacking:
                complete.append(task)
                continue
            without = [kind for kind in kinds if any(name not in maps[kind] for name in lacking)]
            why = f"{len(lacking)} of {len(names)} images have no {' or no '.join(without)}"
            if len(lacking) < len(names):
                why += f" (--tasks {task} leaves them out): {_some(lacking)}"
            report(f"{split}: the set will not serve {task}, for {why}")
        return complete


def _listing(folder: Path, endings: tuple[str, ...]) -> tuple[list[tuple[str, Path]], list[str]]:
    """(NAME, path) of the files under `folder` with one of the endings, and the other files."""
    listed, others = [], []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        ending = next((ending for ending in endings if name.lower().endswith(ending.lower())), None)
        if ending is None:
            others.append(name)
        else:
            listed.append((name[: -len(ending)], path))
    return listed, others


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
