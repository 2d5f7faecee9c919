"""Where runs and files are, as they are written in settings."""

import re
from pathlib import Path

import fsspec

from jobs.values import nearest
from shards.errors import UsageError
from shards.files import expanded, is_url
from shards.remote import RemoteFolder

RUNS = Path("runs")


def runs_location(location: str) -> str:
    """Return the location of all runs, as an absolute path or a URL that can be used.

    Raises:
        UsageError: No library supports the URL, or it holds a password.
    """
    protocol, colon, rest = location.partition(":")
    if not is_url(location):
        if colon and re.fullmatch(r"[a-z0-9]+", protocol) and not Path(location).exists():
            fix = f"write {protocol}://{rest.lstrip('/')}, or ./{location} for a folder"
            raise UsageError("neither a URL nor a folder", where=f"runs={location}", fix=fix)
        return absolute(location)
    where = f"runs={location}"
    if "@" in rest.split("/")[2]:
        where = f"runs={protocol}://…"
        fix = "give the credentials in environment variables"
        raise UsageError("the URL holds a user or a password", where=where, fix=fix)
    if protocol in ("http", "https"):
        fix = "give an object store such as s3://BUCKET/runs, or a folder"
        raise UsageError("a web server does not keep runs", where=where, fix=fix)
    try:
        return RemoteFolder(location).url
    except UsageError as error:
        known = fsspec.available_protocols()
        fix = "" if protocol in known else nearest(protocol, known)
        raise UsageError(error.problem.what, where=where, fix=fix) from error


def absolute(location: str) -> str:
    """Return a path as an absolute one; a URL and `none` as they are."""
    if location == "none" or is_url(location):
        return location
    return str(expanded(location).absolute())


def run_or_path(name: str, runs: str) -> str:
    """Return the folder of the run `name` if there is such a run, otherwise `name`, a path."""
    folders = [RUNS / name] if is_url(runs) else [expanded(runs) / name, RUNS / name]
    return next((str(f) for f in folders if (f / "config.yaml").is_file()), name)
