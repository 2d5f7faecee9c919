"""The manifest of a shard set. It is written last, so a folder without one is not a set."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.checked import checked
from shards.errors import DataError, UsageError
from shards.files import read_json, sha256, whole_file
from shards.format.schema import INSTANCES, SCHEMA, SEGMENTS, SEMANTIC, TASKS, is_printable
from shards.format.tar import BLOCK
from shards.format.taxonomy import Taxonomy

MANIFEST = "manifest.json"

_REBUILD = "build the set again"
_TRUTH = {  # the members that hold the truth of a task: one of them suffices
    "panoptic": (SEGMENTS,),
    "instance": (INSTANCES, SEGMENTS),
    "semantic": (SEMANTIC, SEGMENTS),
}


@dataclass(frozen=True)
class Shard:
    """One tar file of a set, with its number of samples."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class File:
    """The size and the hash (hex) of a file beside the manifest."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """Return the size and the hash of a file."""
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Foreign:
    """The meaning of the members of third-party tars.

    Attributes:
        image: The extension of the image.
        labels: The extension of the map of labels.
        instances: The extension of the map of instance numbers, or None.
        ignored: The labels of the pixels that belong to no class.
    """

    image: str
    labels: str
    instances: str | None
    ignored: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A shard set.

    Attributes:
        source: The name of the source, such as "coco".
        taxonomy: The classes.
        tasks: The tasks for which every sample has truth.
        members: The extensions of the members that every sample has.
        licence: The publisher's table of licenses.
        versions: The versions of the libraries that determine the bytes.
        inputs: A digest of what the set was built from.
        index: The size and the hash of `samples.parquet`.
        shards: The tars in order.
        foreign: Set only for third-party tars, which `index` made readable in place.
    """

    source: str
    taxonomy: Taxonomy
    tasks: tuple[str, ...]
    members: tuple[str, ...]
    licence: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    inputs: str
    index: File
    shards: tuple[Shard, ...]
    foreign: Foreign | None = None

    @property
    def samples(self) -> int:
        """The number of samples in the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the schema, the taxonomy, the shards' hashes, and `foreign` if set.

        Sets with equal contents have equal fingerprints.
        """
        shards = [shard.sha256 for shard in self.shards]
        meaning = [asdict(self.foreign)] if self.foreign else []
        return digest([SCHEMA, self.taxonomy.to_json(), shards, *meaning])

    def save(self, folder: Path) -> None:
        """Write `manifest.json`.

        Raises:
            DataError: `load` would refuse it; the source gave a value that no set can hold.
        """
        document = {
            "schema": SCHEMA,
            **asdict(self),
            "samples": self.samples,
            "fingerprint": self.fingerprint,
        }
        document["checksum"] = digest(document)
        text = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
        self._parsed(json.loads(text), folder / MANIFEST)
        with whole_file(folder / MANIFEST) as file:
            file.write(text)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            UsageError: The folder holds no finished shard set.
            DataError: The manifest is damaged, has another schema, has a member of a wrong type, or
                contradicts itself.
        """
        path = folder / MANIFEST
        try:
            document = read_json(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"not a shard set (no {MANIFEST})",
                where=folder,
                fix="give the folder of one split, or make one: ./launch.sh build coco --root RAW "
                "--out SHARDS",
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"damaged ({error})", where=path, fix=_REBUILD) from error
        return cls._parsed(document, path)

    @classmethod
    def _parsed(cls, document: Any, path: Path) -> "Manifest":
        """Return the manifest of a JSON value.

        Raises:
            DataError: As for `load`.
        """
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"the manifest has schema {schema!r:.40}, but this version reads {SCHEMA}",
                where=path,
                fix=_REBUILD,
            )
        names = {field.name for field in fields(cls)}
        try:
            is_whole = document.pop("checksum", None) == digest(document)
            members = {name: value for name, value in document.items() if name in names}
            manifest = checked(cls, members) if is_whole else None
        except (ValueError, RecursionError) as error:
            raise DataError(f"damaged ({error})", where=path, fix=_REBUILD) from error
        if manifest is None:
            raise DataError("the checksum does not match", where=path, fix=_REBUILD)
        if problem := _contradiction(manifest):
            raise DataError(problem, where=path, fix="do not use this set")
        return manifest


def _contradiction(manifest: Manifest) -> str:
    """Return what a manifest of correct types must not say, or ""."""
    if problem := manifest.taxonomy.problem():
        return problem
    for shard in manifest.shards:
        # The name is a path in the set's folder, and the hash is a file name in the cache.
        if not is_shard_name(shard.name):
            return f"shard {shard.name!r} is not a tar in the set's folder"
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            return f"the sha256 of {shard.name!r} is {shard.sha256!r}, which is not 64 hex digits"
        if not 0 <= shard.samples <= shard.bytes // BLOCK:
            return f"shard {shard.name!r} has {shard.samples} samples in {shard.bytes} bytes"
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        return "a shard occurs twice"
    if manifest.index.bytes < 0:
        return f"the index has {manifest.index.bytes} bytes"
    if unknown := set(manifest.tasks) - set(TASKS):
        return f"{min(unknown)!r} is not a task"
    for task in () if manifest.foreign else manifest.tasks:
        if not set(_TRUTH[task]) & set(manifest.members):
            return f"the members {', '.join(manifest.members)} have no truth for the task {task}"
    if manifest.foreign:
        wanted = {manifest.foreign.image, manifest.foreign.labels, manifest.foreign.instances}
        if missing := wanted - {None, *manifest.members}:
            return f"the members do not include {min(map(str, missing))!r}"
        [*licenses] = (value for entry in manifest.licence for value in entry.values())
        if len(manifest.licence) != 1 or not all(isinstance(value, str) for value in licenses):
            return "the license of a set of third-party tars is not one table of texts"
    return ""


def is_shard_name(name: str) -> bool:
    """Return whether a shard may have this name: that of a visible tar file, in the set's folder.

    `index` refuses the tars whose names no manifest may list.
    """
    hidden = name.startswith(".") or "/" in name or "\\" in name
    return name.lower().endswith(".tar") and not hidden and is_printable(name)


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
