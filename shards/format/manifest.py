"""The manifest of a shard set. It is written last, so a folder without one is not a set."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.files import sha256, whole_file
from shards.format.schema import SCHEMA, is_printable
from shards.format.taxonomy import Taxonomy

MANIFEST = "manifest.json"

_REBUILD = "build the set again"


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
        """Write `manifest.json`."""
        document = {
            "schema": SCHEMA,
            **asdict(self),
            "samples": self.samples,
            "fingerprint": self.fingerprint,
        }
        document["checksum"] = digest(document)
        with whole_file(folder / MANIFEST) as file:
            file.write(json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            UsageError: The folder holds no finished shard set.
            DataError: The manifest is damaged, has another schema, or names a shard that is not a
                tar in the folder.
        """
        path = folder / MANIFEST
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"not a shard set (no {MANIFEST})",
                where=folder,
                fix="give the folder of one split, or make one: ./launch.sh build coco --root RAW "
                "--out SHARDS",
            ) from error
        except ValueError as error:
            raise DataError(f"damaged ({error})", where=path, fix=_REBUILD) from error
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"the manifest has schema {schema}, but this version reads {SCHEMA}",
                where=path,
                fix=_REBUILD,
            )
        if document.pop("checksum", None) != digest(document):
            raise DataError("the checksum does not match", where=path, fix=_REBUILD)
        for shard in document["shards"]:
            name = shard["name"]
            if not is_shard_name(name):
                raise DataError(
                    f"shard {name!r} is not a tar in the set's folder",
                    where=path,
                    fix="do not use this set",
                )
        return cls(
            source=document["source"],
            taxonomy=Taxonomy.from_json(document["taxonomy"]),
            tasks=tuple(document["tasks"]),
            members=tuple(document["members"]),
            licence=tuple(document["licence"]),
            versions=document["versions"],
            inputs=document["inputs"],
            index=File(**document["index"]),
            shards=tuple(Shard(**shard) for shard in document["shards"]),
            foreign=_foreign(document.get("foreign")),
        )


def _foreign(value: dict[str, Any] | None) -> Foreign | None:
    if value is None:
        return None
    return Foreign(value["image"], value["labels"], value["instances"], tuple(value["ignored"]))


def is_shard_name(name: str) -> bool:
    """Return whether a shard may have this name: that of a visible tar file, in the set's folder.

    `index` refuses the tars whose names no manifest may list.
    """
    hidden = name.startswith(".") or "/" in name or "\\" in name
    return name.lower().endswith(".tar") and not hidden and is_printable(name)


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
