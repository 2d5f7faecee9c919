"""What a finished shard set says of itself. It is written last: no manifest, no set."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.files import sha256, whole_file
from shards.format.schema import SCHEMA
from shards.format.taxonomy import Taxonomy

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar file of a set; `samples` counts."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class File:
    """Size and hash (hex) of a file beside the manifest."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """What `path` is now."""
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Foreign:
    """What members of tars that others have written mean, by extension: the image, the map of
    labels, that of the things' numbers if there is one. `ignored` are labels of no class."""

    image: str
    labels: str
    instances: str | None
    ignored: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A shard set; of tars by others, which `index` found where they are, `foreign` tells.

    `tasks` are those for which every sample has its truth, `members` the extensions every sample
    has, `licence` the publisher's table of licences, `versions` the libraries that shaped the
    bytes, `inputs` a digest of what the set was built from, `index` is `samples.parquet`.
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
        """How many samples the set has."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over schema, taxonomy and the shards' hashes: equal for equal contents."""
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

        Raises UsageError where there is no finished shard set, DataError for a damaged manifest or
        another schema.
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
            raise DataError(f"{path}: damaged ({error}); build the set again") from error
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"{path}: schema {schema}, this version reads {SCHEMA}; build the set again"
            )
        if document.pop("checksum", None) != digest(document):
            raise DataError(f"{path}: does not match its checksum; build the set again")
        for shard in document["shards"]:
            name = shard["name"]
            if not re.fullmatch(r"\w[\w.-]*\.tar", name):
                raise DataError(
                    f"{path}: shard {name!r} is no tar in the set's folder; do not use this set"
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


def _foreign(said: dict[str, Any] | None) -> Foreign | None:
    return said and Foreign(**said | {"ignored": tuple(said["ignored"])})


def digest(value: Any) -> str:
    """sha256 (hex) of a plain JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
