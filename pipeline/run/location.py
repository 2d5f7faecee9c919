"""The URL of a run on storage, beside the folders that stand for it on a host."""

from pathlib import Path

from shards.files import is_url, read_regular, whole_file

MARK = ".url"  # added to the name of the folder; the run itself has no such file


def mark(folder: Path, url: str) -> None:
    """Record which run a folder stands for."""
    path = folder.with_name(folder.name + MARK)
    if location_of(folder) != url:
        with whole_file(path) as file:
            file.write(url.encode())


def location_of(path: Path) -> str:
    """Return where a run, or a file of its, is kept: a URL, or the path."""
    for folder in (path, *path.parents):
        try:
            url = read_regular(folder.with_name(folder.name + MARK)).decode()
        except (OSError, ValueError):  # there is none; or it is the root, which has no name
            continue
        if is_url(url):
            return "/".join([url, *path.relative_to(folder).parts])
    return str(path)
