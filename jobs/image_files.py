"""The image files in the paths of a command line, each with an id."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from jobs.outputs import made_by
from shards.errors import UsageError
from shards.files import is_clutter

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
PANOPTIC = "panoptic"  # the folder of the results that no id may begin with


@dataclass
class ImageFiles:
    """Image files and what was stepped over.

    Attributes:
        base: The deepest folder that holds all given folders, and the folders of all given files.
        paths: The files by their ids. The id is the path below `base` without the suffix, or with
            it if several files would have the same id.
        ignored: Hidden files, such as the `._` files of macOS, that have the suffix of an image.
        unread: The reason for each folder that cannot be listed.
    """

    base: Path
    paths: dict[str, Path] = field(default_factory=dict)
    ignored: list[Path] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        """Return a path below `base`, with `/` on every system."""
        return path.relative_to(self.base).as_posix()


def find_images(paths: list[Path]) -> ImageFiles:
    """Return the given files, and the images in the given folders and the folders below them.

    Hidden folders, `__MACOSX` and its like, and folders with the results of a command are not
    entered.

    Raises:
        UsageError: A path does not exist, or a folder has no image.
    """
    given = [path.resolve() if ".." in path.parts else path.absolute() for path in paths]
    folders = [path if path.is_dir() else path.parent for path in given]
    found = ImageFiles(Path(os.path.commonpath(folders)))
    files: dict[Path, None] = {}
    for path in given:
        if path.is_file():
            files[path] = None
            continue
        if not path.is_dir():
            what = "is not a file or folder" if path.exists() else "does not exist"
            raise UsageError(what, where=path, fix="give images or folders of images")
        if command := made_by(path):
            raise UsageError(
                f"holds the results of {command}", where=path, fix="give a folder of images"
            )
        inside = dict.fromkeys(_walk(path, found))
        if not inside and not found.unread:
            suffixes = ", ".join(sorted(SUFFIXES))
            raise UsageError(f"holds no image ({suffixes})", where=path, fix="give another folder")
        files |= inside
    while any(_first(found.name(path)) == PANOPTIC for path in files) and found.base.name:
        found.base = found.base.parent
    found.paths = dict(zip(_ids([found.name(path) for path in files]), files, strict=True))
    return found


def _walk(folder: Path, found: ImageFiles) -> Iterator[Path]:
    """Yield the images below a folder in the order of their names; follow links, but not twice."""
    entered = set()

    def skip(error: OSError) -> None:
        found.unread[Path(error.filename)] = error.strerror or str(error)

    for root, folders, names in os.walk(folder, followlinks=True, onerror=skip):
        here, real = Path(root), os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(
            name for name in folders if not is_clutter(PurePath(name)) and not made_by(here / name)
        )
        for name in sorted(names):
            if Path(name).suffix.lower() not in SUFFIXES:
                continue
            if is_clutter(PurePath(name)):
                found.ignored.append(here / name)
            else:
                yield here / name


def _first(name: str) -> str:
    return Path(name).parts[0]


def _ids(names: list[str]) -> list[str]:
    """Return the ids of files by their names, which all differ."""
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    taken = Counter(stems) + Counter(set(names))
    return [stem if taken[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
