"""Where the files of a data set with label maps are, and which images have no maps."""

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import DataError, UsageError, some_of
from shards.files import files_below
from shards.format.schema import SEGMENTS, SEMANTIC, TASKS


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one sample, which may be missing.

    Attributes:
        name: The part of the file names that the image and its maps share.
        file_name: The image's path in the image folder of its split.
        image: The image.
        maps: The maps by kind.
    """

    name: str
    file_name: str
    image: Path
    maps: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a publisher lays out a data set.

    A file is `FOLDER/NAME + ending`, and an image and its maps share the NAME. `{}` in a folder
    stands for the folder of the split.

    Attributes:
        source: The name of the source.
        splits: The folder of every split.
        images: The folder and the endings of the images.
        maps: The folder and the ending of every kind of map.
        needs: For every task, the kinds of maps that it needs.
        members: For every task, the map member that holds its annotations.
    """

    source: str
    splits: Mapping[str, str]
    images: tuple[str, tuple[str, ...]]
    maps: Mapping[str, tuple[str, str]]
    needs: Mapping[str, Sequence[str]]
    members: Mapping[str, str] = field(
        default_factory=lambda: dict(zip(TASKS, (SEGMENTS, SEGMENTS, SEMANTIC), strict=True))
    )

    def find_splits(self, root: Path, report: Callable[[str], None]) -> list[str]:
        """Return the splits that have an image folder.

        Args:
            root: The folder of the raw data set.
            report: Receives a line for every split that is missing.

        Raises:
            UsageError: There is no split at all.
        """
        folders = {split: self._folder(root, split, self.images[0]) for split in self.splits}
        found = [split for split, folder in folders.items() if folder.is_dir()]
        if not found:
            names = [folder.relative_to(root).as_posix() for folder in folders.values()]
            raise UsageError(
                f"the folder has no {' or '.join(names)}",
                where=root,
                fix=f"give the folder of {self.source}'s raw data as --root",
            )
        for split, folder in folders.items():
            if split not in found:
                report(f"{split}: there is no {folder}, so this split is not built")
        return found

    def find_files(
        self,
        root: Path,
        split: str,
        tasks: Collection[str] | None,
        report: Callable[[str], None],
    ) -> tuple[tuple[str, ...], list[Files]]:
        """Find the files of a split.

        Args:
            root: The folder of the raw data set.
            split: The name of the split.
            tasks: The tasks to serve; None for every task for which no image lacks a map. Images
                that lack the first kind of map do not count: they have no annotation at all, and
                reading them rejects them.
            report: Receives a line for every task that is not served.

        Returns:
            The tasks that the split serves, and the files of every sample. A map without an image
            makes a sample too, so that reading it reports the missing image.

        Raises:
            UsageError: The split does not exist.
            DataError: A task has no maps at all, or no map has the name of an image.
        """
        folder = self._folder(root, split, self.images[0])
        if split not in self.splits or not folder.is_dir():
            raise UsageError(
                "the folder has no images of this split",
                where=folder,
                fix=f"add them, or leave {split} out of --splits",
            )
        images, others = _list_files(folder, self.images[1], report)
        if others:
            report(f"{split}: {folder} has files that are not images: {some_of(others)}")
        folders = {kind: self._folder(root, split, path) for kind, (path, _) in self.maps.items()}
        maps = {}
        for kind, (_, ending) in self.maps.items():
            found, others = _list_files(folders[kind], (ending,), report)
            if others and not found:
                report(f"{split}: {folders[kind]} holds no *{ending}, only {some_of(others)}")
            maps[kind] = _pair(images, found, folder, report)
        if tasks is None:
            tasks = self._complete_tasks(split, [name for name, _ in images], maps, report)
        self._require_maps(split, tasks, folders, maps)
        kinds = [kind for kind in self.maps if any(kind in self.needs[task] for task in tasks)]
        names = {name for kind in kinds for name in maps[kind]}
        images += _missing_images(folder, images, names, self.images[1][0])
        return tuple(task for task in TASKS if task in tasks), [
            Files(
                name=name,
                file_name=path.relative_to(folder).as_posix(),
                image=path,
                maps={
                    kind: maps[kind].get(name, folders[kind] / f"{name}{self.maps[kind][1]}")
                    for kind in kinds
                },
            )
            for name, path in images
        ]

    def _folder(self, root: Path, split: str, folder: str) -> Path:
        return root / folder.format(self.splits.get(split, split))

    def _require_maps(
        self,
        split: str,
        tasks: Collection[str],
        folders: Mapping[str, Path],
        maps: Mapping[str, Collection[str]],
    ) -> None:
        """Raise DataError unless there is a task, and a map of every kind that the tasks need."""
        if not tasks:
            raise DataError(
                f"{split} has label maps for none of the tasks",
                where=", ".join(map(str, folders.values())),
                fix=f"unpack the label maps there, or leave {split} out of --splits",
            )
        for task in tasks:
            for kind in self.needs[task]:
                if not maps[kind]:
                    raise DataError(
                        f"the folder holds no *{self.maps[kind][1]}",
                        where=folders[kind],
                        fix=f"unpack {kind} there, or leave {task} out of --tasks, "
                        f"or {split} out of --splits",
                    )

    def _complete_tasks(
        self,
        split: str,
        names: Collection[str],
        maps: Mapping[str, Collection[str]],
        report: Callable[[str], None],
    ) -> list[str]:
        """Return the tasks for which no image lacks a map, and report the others.

        Args:
            split: The name of the split.
            names: The NAME of every image.
            maps: For every kind of map, the NAMEs that have one.
            report: Receives a line for every task that is not served.
        """
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
                why += f" (--tasks {task} leaves them out): {some_of(lacking)}"
            report(f"{split}: the set does not serve {task} because {why}")
        return complete


def _missing_images(
    folder: Path, images: Sequence[tuple[str, Path]], names: Collection[str], ending: str
) -> list[tuple[str, Path]]:
    """Return (NAME, path) of the images that maps exist for but that are missing.

    Args:
        folder: The image folder of the split.
        images: (NAME, path) of the images that exist.
        names: The NAMEs that have a map.
        ending: The ending of a missing image if there is no image at all. Otherwise it is the
            ending of the first image, because all images of a set must have one format.
    """
    if images:
        name, path = images[0]
        ending = path.relative_to(folder).as_posix().removeprefix(name)
    missing = set(names) - {name for name, _ in images}
    return [(name, folder / f"{name}{ending}") for name in sorted(missing)]


def _list_files(
    folder: Path, endings: tuple[str, ...], report: Callable[[str], None]
) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return (NAME, path) of the files below `folder` with one of the endings, and other files."""
    listed, others = [], []
    for path in sorted(files_below(folder, report)):
        name = path.relative_to(folder).as_posix()
        ending = next((ending for ending in endings if name.lower().endswith(ending.lower())), None)
        if ending is None:
            others.append(name)
        else:
            listed.append((name[: -len(ending)], path))
    return listed, others


def _pair(
    images: Sequence[tuple[str, Path]],
    maps: Sequence[tuple[str, Path]],
    folder: Path,
    report: Callable[[str], None],
) -> dict[str, Path]:
    """Return the path of every map by the NAME of its image.

    An image without a map of its own NAME has the map that is named after its whole file
    (`a.jpg.png`), or whose name differs only in case or in the form of its accents.

    Args:
        images: (NAME, path) of the images.
        maps: (NAME, path) of the maps.
        folder: The folder of the images.
        report: Receives a line for maps of the same name.

    Raises:
        DataError: There are images and maps, and no map has the name of an image.
    """
    names = {name for name, _ in images}
    other_names = {_folded(name): name for name in names}
    other_names |= {_folded(path.relative_to(folder).as_posix()): name for name, path in images}
    exact = [(name, path) for name, path in maps if name in names]
    paired: dict[str, Path] = {}
    unused = []
    for name, path in exact + [row for row in maps if row[0] not in names]:
        image = name if name in names else other_names.get(_folded(name), name)
        if paired.setdefault(image, path) != path:
            unused.append(str(path))
    if images and maps and names.isdisjoint(paired):
        (name, image), (of_map, path) = images[0], maps[0]
        ending = path.name.removeprefix(Path(of_map).name)
        raise DataError(
            f"no map has the name of an image: the first map is {path.name}, the first image is "
            f"{image.name}",
            where=path.parent,
            fix=f"give each map the name of its image, such as {Path(name).name}{ending}",
        )
    if unused:
        report(f"another map of the same image is used instead of {some_of(unused)}")
    return paired


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
