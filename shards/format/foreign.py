"""Samples of tars that others have written, read where they are: nothing is copied or changed.

A sample is the members of one key that stand together, as `webdataset` has it: an image, a map of
labels, and perhaps a map of the things' numbers, with the meaning that they have for `build folder`
(docs/folder.md). `Foreign`, in the manifest, says which of the members they are.
"""

import io
import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import BinaryIO

from shards.errors import DataError
from shards.files import leaves_folder
from shards.format.index import BLOCK
from shards.format.label_maps import labels_in, labels_of, truth_of_maps
from shards.format.manifest import Manifest
from shards.format.schema import Sample, png_size, rights_of

SOURCE = "webdataset"


def load(blob: bytes, manifest: Manifest) -> Sample:
    """A sample from its bytes, which are those that were examined. Raises DataError else."""
    [(key, found, *_)] = samples(io.BytesIO(blob), "a sample")
    size = png_size(found[manifest.foreign.labels])  # that of the image, too
    return sample(key, found, manifest, size)


def samples(file: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, bytes], int, int]]:
    """Key, members by extension, and first and last byte of every sample in a tar."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for key, group in groupby(_members(archive, name), key=itemgetter(0)):
                found, start, end = {}, None, 0
                for _, ext, member in group:
                    if ext in found:
                        raise DataError(f"{name}: {key}.{ext} occurs twice in a sample; rename it")
                    found[ext] = archive.extractfile(member).read()
                    start = member.offset if start is None else start
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                yield key, found, start, end
    except tarfile.TarError as error:
        raise DataError(f"{name} is no plain tar ({error}); unpack or get it anew") from error


def _members(archive: tarfile.TarFile, name: str) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of the files in a tar. Raises DataError for a hostile name."""
    for member in archive:
        path = PurePosixPath(member.name)
        if leaves_folder(member.name):
            raise DataError(f"{name}: {member.name!r} leaves its folder; do not use this file")
        if member.isdir():
            continue
        stem, _, ext = path.name.partition(".")
        if not member.isreg() or member.issparse() or not stem or not ext:
            raise DataError(f"{name}: {member.name!r} is no file KEY.EXTENSION; take it out")
        yield str(path.with_name(stem)), ext, member
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
        raise DataError(f"{name}: damaged tar header at byte {archive.offset}; get it anew")


def sample(key: str, found: dict[str, bytes], manifest: Manifest, size: tuple[int, int]) -> Sample:
    """A sample in our terms, rejected if its truth is not sound; `size` is its image's."""
    foreign, taxonomy = manifest.foreign, manifest.taxonomy
    maps = [
        (f"{key}.{ext}", labels_in(io.BytesIO(found[ext]), f"{key}.{ext}", size))
        for ext in (foreign.labels, foreign.instances)
        if ext
    ]
    labels = labels_of(taxonomy, foreign.ignored)
    width, height = size
    return Sample(
        key=key,
        image=found[foreign.image],
        ext=foreign.image,
        file_name=f"{key}.{foreign.image}",
        source=SOURCE,
        image_id=key,
        width=width,
        height=height,
        rights=rights_of(*manifest.licence),
        **truth_of_maps(labels, taxonomy.things, maps[0], maps[1] if maps[1:] else None),
    )
