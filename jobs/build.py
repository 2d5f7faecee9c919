"""`build`: raw data to shards, on this machine or on a Ray cluster."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.cluster.target import HERE, Target
from jobs.on_ray import tasks as ray_tasks
from shards.build.build import build_sets
from shards.build.options import BuildOptions
from shards.errors import UsageError
from shards.parallel import Runner
from shards.sources.coco_item import CocoFiles
from shards.text import say
from shards.verify import shard_sets


def build(options: BuildOptions, target: Target = HERE) -> dict[str, dict[str, Any]]:
    """Build the shard sets and print what they serve.

    Args:
        options: What to build.
        target: This machine, or a Ray cluster.

    Returns:
        The summary of every split; see `build_sets`.
    """
    address = target.cluster
    if address:  # its processes have other working directories
        options = _absolute(options)
    with _runner(address, options) as runner:
        built = build_sets(options, runner)
    if not options.url and len(sets := shard_sets(Path(options.out))) == 1:
        own = isinstance(options.root, CocoFiles)
        how = "its JSON with --split val" if own else f"a split of them in {options.root}"
        how += ", or build again with --hold-out 0.1,"
        say(
            f"{sets[0]} is the only set; training also needs a set of other images for data.val: "
            f"build {how} into the same --out"
        )
    return built


def raw_data(
    root: Path | None, splits: str | None, files: dict[str, Path | None], split: str | None
) -> tuple[Path | CocoFiles, tuple[str, ...]]:
    """Return the `root` and the `splits` of BuildOptions from the options of the command line.

    Args:
        root: --root, the folder of the raw data set.
        splits: --splits, separated by commas.
        files: --images, --instances, --panoptic, and --maps, which stand for --root.
        split: --split, the name of the set that `files` make.

    Raises:
        UsageError: The options contradict each other, or one is missing.
    """
    given = [f"--{name}" for name, value in {**files, "split": split}.items() if value]
    if not given:
        if root is None:
            raise UsageError(
                "is not given", where="--root", fix="give the folder of the raw data set"
            )
        return root, tuple(splits.split(",")) if splits else ()
    if root or splits:
        other = "--root" if root else "--splits"
        raise UsageError(f"does not go with {other}", where=given[0], fix="leave one of them out")
    images = files["images"]
    if not (images and split):
        raise UsageError("needs --images D and --split NAME", where=given[0], fix="add them")
    return CocoFiles(images, files["instances"], files["panoptic"], files["maps"]), (split,)


def _absolute(options: BuildOptions) -> BuildOptions:
    """Return the options with absolute paths."""
    root, out = options.root, options.out
    if isinstance(root, CocoFiles):
        paths = dataclasses.asdict(root).items()
        root = CocoFiles(**{name: path and path.absolute() for name, path in paths})
    else:
        root = root.absolute()
    return dataclasses.replace(options, root=root, out=options.url or Path(out).absolute())


@contextlib.contextmanager
def _runner(address: str | None, options: BuildOptions) -> Iterator[Runner | None]:
    """Yield the runner of a cluster, or None for processes on this machine."""
    if not address:
        yield None
        return
    if options.jobs:
        raise UsageError(
            f"is for processes on this machine, and the shards are built on {address}",
            where="--jobs",
            fix="leave it out",
        )
    root = options.root
    paths = dataclasses.astuple(root) if isinstance(root, CocoFiles) else (root,)
    shared = [path for path in paths if path]
    if not options.url:
        shared.append(Path(options.out))
    with ray_tasks(address, shared) as runner:
        yield runner
