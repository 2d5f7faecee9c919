"""Whether a build may write to its folder or URL, and whether there is room."""

import contextlib
import os
import shutil
from pathlib import Path, PurePath

from shards.build.plan import STATE
from shards.errors import DataError, Failed, UsageError
from shards.files import is_clutter, parse_json
from shards.format.manifest import MANIFEST, Manifest
from shards.remote import RemoteFolder


def claim_folder(out: Path, source: str) -> None:
    """Create `out` if necessary, and make sure that it holds only shard sets of this source.

    Raises:
        UsageError: `out` is not a writable folder, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", where="--out", fix="give a new or empty one")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(
            f"{out} is not writable", where="--out", fix="give another folder or change its rights"
        )
    for entry in out.iterdir():
        if is_clutter(PurePath(entry.name)):
            continue
        ours, found = (entry / STATE).is_dir(), source
        with contextlib.suppress(DataError, UsageError):  # the build repairs damaged manifests
            found = Manifest.load(entry).source
            ours = True
        _check_entry(out, entry.name, ours, source, found)


def claim_url(url: str, source: str) -> None:
    """Make sure that only shard sets of this source are below a URL.

    Raises:
        UsageError: Something else is below the URL.
        Failed: The server does not answer.
    """
    remote = RemoteFolder(url)
    files = remote.files()
    for entry in {name.partition("/")[0] for name in files}:
        if is_clutter(PurePath(entry)):
            continue
        ours, found = any(name.startswith(f"{entry}/{STATE}/") for name in files), source
        if f"{entry}/{MANIFEST}" in files:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged manifest
                found = parse_json(remote.read(f"{entry}/{MANIFEST}"))["source"]
                ours = True
        _check_entry(url, entry, ours, source, found)


def _check_entry(out: Path | str, name: str, ours: bool, source: str, found: str) -> None:
    if not ours:
        raise UsageError(
            f"{out} holds {name}, which is not a shard set",
            where="--out",
            fix="give a new or empty folder",
        )
    if found != source:
        raise UsageError(
            f"{out} holds a set built from {found}", where="--out", fix="give another folder"
        )


def check_space(out: Path, needed: int) -> None:
    """Raise Failed if the disk of `out` has less than `needed` bytes free."""
    free = shutil.disk_usage(out).free
    if needed > free:
        raise Failed(
            f"the missing shards take about {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB "
            "are free",
            where=out,
            fix="free some, give an --out on a larger disk, or a --limit",
        )
