"""The images that a command line names, in files, folders, and shard sets, each with an id."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from jobs.outputs import made_by
from jobs.predict.urls import ImageAtUrl, images_below, path_of, without_query
from pipeline.data.store import Store
from shards.errors import DataError, UsageError
from shards.files import is_clutter, is_url, read_regular
from shards.format.images import decode_image
from shards.format.index import SAMPLES
from shards.format.manifest import MANIFEST
from shards.remote import RemoteFolder

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
PANOPTIC, SEMANTIC = "panoptic", "semantic"
RECORDS, THUMBNAILS = "records", "thumbnails"
RESERVED = (PANOPTIC, SEMANTIC, RECORDS, THUMBNAILS)  # folders of the results; no id begins so


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    def stamp(self) -> str:
        """Return the size and the time of the last change; "" if the file cannot be found."""
        try:
            status = self.path.stat()
        except OSError:
            return ""
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self) -> np.ndarray:
        """Return the image, RGB `uint8 [H, W, 3]`.

        Raises:
            DataError: It cannot be read or does not decode.
        """
        try:
            encoded = read_regular(self.path)
        except OSError as error:
            raise DataError(error.strerror or str(error), where=self.path) from error
        if not encoded:
            raise DataError("the file is empty", where=self.path)
        return decode_image(encoded, str(self.path))


@dataclass(frozen=True)
class ImageInSet:
    """An image of a shard set, by its index."""

    store: Store
    number: int

    def stamp(self) -> str:
        """Return the hash of the sample."""
        return f"{int(self.store.index.xxh3[self.number]):016x}"

    def read(self) -> np.ndarray:
        """Return the image, RGB `uint8 [H, W, 3]`.

        Raises:
            DataError: It cannot be read or does not decode.
        """
        return decode_image(self.store.load(self.number).image, self.store.index.key[self.number])


Source = ImageFile | ImageInSet | ImageAtUrl


@dataclass
class Images:
    """The images of a command line, and what was stepped over.

    Attributes:
        base: The deepest folder that holds all given folders, and the folders of all given files.
        sources: The images by their ids. The id is the path below `base` without the suffix, or
            with it if several images would have the same id. The path of an image of a shard set
            is its key below the folder of the set.
        names: The path of each image below `base`, by its id.
        ignored: Hidden files, such as the `._` files of macOS, that have the suffix of an image.
        unread: The reason for each folder that cannot be listed, by its path.
        read: The files and shard sets that are read.
    """

    base: Path
    sources: dict[str, Source] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    ignored: list[Path] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)
    read: list[Path] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """Return a path below `base`, with `/` on every system."""
        return path.relative_to(self.base).as_posix()


def find_images(given: list[str]) -> Images:
    """Return the images that a command line names.

    A folder is searched with those below it, except for hidden folders, `__MACOSX` and its like,
    and folders with the results of a command. A pattern is expanded as a shell does it, with `**`
    for any number of folders.

    Args:
        given: Files, folders, patterns, folders of shard sets, and URLs of each except patterns.

    Raises:
        UsageError: A path does not exist, or a folder has no image.
        DataError: A shard set is damaged.
    """
    roots = [_absolute(path) for text in given for path in _expanded(text)]
    folders = [root if _is_folder(text, root) else root.parent for text, root in roots]
    images = Images(Path(os.path.commonpath(folders)))
    found: dict[Path, Source] = {}
    for text, root in roots:
        inside = _images_of(text, root, images, is_pattern=text not in given)
        for path in found.keys() & inside.keys():
            if isinstance(inside[path], ImageAtUrl) and inside[path] != found[path]:
                where, fix = without_query(text), "give them to two commands"
                raise UsageError("two URLs differ only in their query", where=where, fix=fix)
        found |= inside
    if not found and not images.unread:
        raise UsageError("match no image", where=" ".join(given), fix="give another pattern")
    while any(_first(images.name(path)) in RESERVED for path in found) and images.base.name:
        images.base = images.base.parent
    names = [images.name(path) for path in found]
    ids = _ids(names)
    images.sources = dict(zip(ids, found.values(), strict=True))
    images.names = dict(zip(ids, names, strict=True))
    return images


def _expanded(text: str) -> list[str]:
    """Return the paths that match a pattern, or the text if it is none or names a file itself."""
    if is_url(text) or not glob.has_magic(text) or os.path.lexists(text):
        return [text]
    matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (of a path in any folder)
    if not matches:
        raise UsageError("matches no file or folder", where=text, fix="give another pattern")
    return matches


def _absolute(text: str) -> tuple[str, Path]:
    if is_url(text):
        return text, path_of(text)
    path = Path(text)
    return text, path.resolve() if ".." in path.parts else path.absolute()


def _images_of(text: str, root: Path, images: Images, *, is_pattern: bool) -> dict[Path, Source]:
    """Return the images of one path or URL by their paths, which give them their names."""
    if is_url(text):
        return _at_url(text, root)
    if not os.path.lexists(root):
        fix = "give images, or folders of images or of shards"
        raise UsageError("does not exist", where=root, fix=fix)
    if not root.is_dir():  # what is not a regular file is left out when it is read
        images.read.append(root)
        return {root: ImageFile(root)}
    if command := made_by(root):
        if is_pattern:
            return {}
        raise UsageError(
            f"holds the results of {command}", where=root, fix="give a folder of images"
        )
    if sets := [folder for folder in (root, *sorted(root.iterdir())) if _is_set(folder)]:
        images.read.extend(sets)
        return {path: one for folder in sets for path, one in _samples(folder, folder).items()}
    inside: dict[Path, Source] = {path: ImageFile(path) for path in _walk(root, images)}
    if not inside and not images.unread and not is_pattern:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"holds no image ({suffixes})", where=root, fix="give another folder")
    images.read.extend(inside)
    return inside


def _is_folder(text: str, root: Path) -> bool:
    return root.suffix.lower() not in SUFFIXES if is_url(text) else root.is_dir()


def _at_url(url: str, root: Path) -> dict[Path, Source]:
    """Return the image at a URL, the samples of a shard set, or the images of a folder.

    Folders of web servers are not searched, because their links may lead anywhere.
    """
    if not _is_folder(url, root):
        return {root: ImageAtUrl(url)}
    if url.startswith(("http:", "https:")) or RemoteFolder(url).info(MANIFEST):
        return _samples(url, root)
    inside: dict[Path, Source] = {
        path_of(one): ImageAtUrl(one) for one in images_below(url, SUFFIXES)
    }
    if not inside:
        suffixes = ", ".join(sorted(SUFFIXES))
        fix = "give the URL of an image, of a folder of images, or of a shard set"
        raise UsageError(f"holds no image ({suffixes}) and no shards", where=url, fix=fix)
    return inside


def _is_set(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (MANIFEST, SAMPLES))


def _samples(location: str | Path, folder: Path) -> dict[Path, Source]:
    store = Store(location)
    return {folder / key: ImageInSet(store, n) for n, key in enumerate(store.index.key)}


def _walk(folder: Path, images: Images) -> Iterator[Path]:
    """Yield the images below a folder in the order of their names; follow links, but not twice.

    A folder that is named as an image is reported as unread if it holds nothing.
    """
    entered = set()

    def skip(error: OSError) -> None:
        images.unread[Path(error.filename)] = error.strerror or str(error)

    for root, folders, names in os.walk(folder, followlinks=True, onerror=skip):
        here, real = Path(root), os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        if here.suffix.lower() in SUFFIXES and here != folder and not (folders or names):
            images.unread[here] = "it is an empty folder"
        folders[:] = sorted(
            name for name in folders if not is_clutter(PurePath(name)) and not made_by(here / name)
        )
        for name in sorted(names):
            if Path(name).suffix.lower() not in SUFFIXES:
                continue
            if is_clutter(PurePath(name)):
                images.ignored.append(here / name)
            else:
                yield here / name


def _first(name: str) -> str:
    return Path(name).parts[0]


def _ids(names: list[str]) -> list[str]:
    """Return the ids of images by their names, which all differ."""
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    taken = Counter(stems) + Counter(set(names))
    return [stem if taken[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
