"""The code that a cluster runs: the files of this checkout that git does not ignore."""

import fnmatch
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shards.errors import UsageError

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 100 * 2**20
NAMED = 5  # of the largest files, in an error
_MAIN = Path("jobs", "__main__.py")


def python_path() -> str:
    """Return the PYTHONPATH of workers here: this checkout, then the user's path (for stages)."""
    return os.pathsep.join([str(ROOT), *user_path()])


def user_path() -> list[str]:
    """Return the folders of the user's PYTHONPATH except this checkout."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return list(dict.fromkeys(folder for folder in folders if folder and Path(folder) != ROOT))


def requirements() -> tuple[SpecifierSet, list[Requirement]]:
    """Return the versions of Python and of the packages that this checkout runs with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return SpecifierSet(project["requires-python"]), list(map(Requirement, project["dependencies"]))


def files(root: Path = ROOT) -> list[Path]:
    """Return the files of a checkout that git does not ignore, relative to it, in order.

    A copy of a checkout is not a repository; its .gitignore is applied all the same.
    """
    command = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, ValueError, subprocess.CalledProcessError):
        listed = ""
    found = {Path(name) for name in listed.split("\0") if name}
    if _MAIN not in found:
        found = set(_walk(root))
    return sorted(path for path in found if (root / path).is_file())


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, without those that its .gitignore names and hidden folders.

    A pattern is compared with the name of a file or folder, at the top only if it starts with "/".
    """
    ignored = root / ".gitignore"
    lines = ignored.read_text().splitlines() if ignored.is_file() else []
    patterns = [line for line in lines if line and not line.startswith("#")]
    for folder, names, children in os.walk(root):
        at_top = Path(folder) == root

        def is_kept(name: str, at_top: bool = at_top) -> bool:
            return not any(
                fnmatch.fnmatch(name, pattern.strip("/"))
                for pattern in patterns
                if at_top or not pattern.startswith("/")
            )

        names[:] = [name for name in names if is_kept(name) and not name.startswith(".")]
        for name in filter(is_kept, children):
            yield Path(folder, name).relative_to(root)


def copy_code(folder: Path, root: Path = ROOT, limit: int = LIMIT_BYTES) -> Path:
    """Copy the files of a checkout to a new folder `code` below `folder`, and return that.

    Raises:
        UsageError: They are larger than the limit.
    """
    names = files(root)
    _check_size(root, names, limit)
    code = folder / "code"
    for name in names:
        target = code / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    return code


def _check_size(root: Path, names: Sequence[Path], limit: int) -> None:
    sizes = {name: (root / name).stat().st_size for name in names}
    if sum(sizes.values()) <= limit:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
    shown = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
    raise UsageError(
        f"the code has {sum(sizes.values()) / 2**20:.1f} MiB, more than the {limit / 2**20:.0f} "
        f"MiB that are sent to a cluster; its largest files: {shown}",
        where=root,
        fix="move data out of the checkout, or name it in .gitignore",
    )
