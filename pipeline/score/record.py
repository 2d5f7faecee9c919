"""The counters of every image in one file, from which all scores and their reasons follow.

A record is a `.npz` file without pickles. docs/evaluation.md lists its arrays.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.score.matching import Matches
from pipeline.score.pairs import Pairs
from pipeline.score.semantic import ClassPixels
from shards.errors import DataError
from shards.files import read_regular, whole_file

VERSION = 1
_PARTS: dict[str, type] = {"panoptic": Pairs, "instance": Matches, "semantic": ClassPixels}


class Image(NamedTuple):
    """An image of a record.

    Attributes:
        key: Its key in the shard set.
        number: Its index in the shard set.
        height: Its height in pixels.
        width: Its width in pixels.
    """

    key: str
    number: int
    height: int
    width: int


@dataclass(frozen=True)
class Record:
    """The counters of images, in the order of their keys.

    Attributes:
        about: What the record belongs to: `data`, the fingerprint of the set, and the `names` and
            `things` of its classes; a command may add more JSON values.
        images: The images.
        panoptic: The shared pixels of segments; None if the set has no panoptic truth.
        instance: The matches of detections; None if the set has no instance truth.
        semantic: The pixels of classes; None if the set has no semantic truth.
    """

    about: dict[str, Any]
    images: list[Image]
    panoptic: list[Pairs] | None = None
    instance: list[Matches] | None = None
    semantic: list[ClassPixels] | None = None

    @property
    def things(self) -> np.ndarray:
        """Whether each class is a thing, `bool [K]`."""
        return np.array(self.about["things"], bool)

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        arrays: dict[str, np.ndarray] = {
            "about": np.frombuffer(json.dumps(self.about | {"version": VERSION}).encode(), np.uint8)
        }
        for n, name in enumerate(Image._fields):
            arrays[f"image.{name}"] = np.array([image[n] for image in self.images])
        for part, kind in _PARTS.items():
            entries = getattr(self, part)
            if entries is None:
                continue
            for n, name in enumerate(kind._fields):
                values = [entry[n] for entry in entries]
                shapes = [value.shape for value in values]
                arrays[f"{part}.{name}"] = np.concatenate(
                    [value.ravel() for value in values] or [np.zeros(0, np.int32)]
                )
                arrays[f"{part}.{name}.shape"] = np.array(shapes, np.int32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        with whole_file(path) as file:
            file.write(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            DataError: The file is not a record of this version.
        """
        try:
            with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                if about["version"] != VERSION:
                    raise ValueError(f"the version {about['version']} is not {VERSION}")
                columns = [arrays[f"image.{name}"].tolist() for name in Image._fields]
                images = [Image(*row) for row in zip(*columns, strict=True)]
                parts = {
                    part: _entries(kind, part, arrays, len(images))
                    for part, kind in _PARTS.items()
                    if f"{part}.{kind._fields[0]}" in arrays
                }
                return cls(about, images, **parts)
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(
                f"not the record of an evaluation ({error})", where=path, fix="evaluate again"
            ) from error


def _entries(kind: type, part: str, arrays: Any, count: int) -> list[Any]:
    """Return one tuple of arrays per image."""
    fields = []
    for name in kind._fields:
        flat, shapes = arrays[f"{part}.{name}"], arrays[f"{part}.{name}.shape"]
        sizes = shapes.prod(1, dtype=np.int64) if len(shapes) else np.zeros(0, np.int64)
        if len(shapes) != count or sizes.sum() != len(flat) or (shapes < 0).any():
            raise ValueError(f"{part}.{name} does not have the sizes that it declares")
        split = np.split(flat, sizes.cumsum()[:-1]) if count else []
        fields.append([
            values.reshape(shape) for values, shape in zip(split, shapes, strict=True)
        ])  # fmt: skip
    return [kind(*row) for row in zip(*fields, strict=True)]
