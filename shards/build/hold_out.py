"""Divide a split into train and val by photograph, the same way at every build."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import xxhash

from shards.errors import DataError, UsageError
from shards.sources.split import Split

# What follows the name of the photograph in the names of its crops and copies: a word for a part
# or an augmented copy, the x and y or the row and column of a tile, or what Roboflow appends.
_PART = re.compile(
    r"[-_. ](crop|tile|patch|part|aug|augmented|copy|flip|rot)[-_. ]?\d*([-_x]\d+)*$"
    r"|[-_](x\d+[-_]?y\d+|y\d+[-_]?x\d+|r\d+[-_]?c\d+|row\d+[-_]?col\d+)$"
    r"|(_(jpg|jpeg|png))?\.rf\.\w+$",
    re.IGNORECASE,
)


def photograph_of(file_name: str) -> str:
    """Return the name that the crops and copies of one photograph share."""
    path = PurePosixPath(file_name)
    return str(path.with_name(_PART.sub("", path.stem) or path.stem))


def held_out(splits: Sequence[Split], share: float, report: Callable[[str], None]) -> list[Split]:
    """Divide the only split into `train` and `val`.

    The photographs with the smallest hashes of their names are held out. Files with equal
    `photograph_of` are on one side.

    Args:
        splits: The split.
        share: The share of the photographs in `val`, which are at least one.
        report: Receives a line that names the numbers.

    Raises:
        UsageError: There are several splits.
        DataError: There is only one photograph.
    """
    if len(splits) > 1:
        names = " and ".join(split.name for split in splits)
        fix = "leave it out, or choose one with --splits"
        raise UsageError(f"the data has the splits {names}", where="--hold-out", fix=fix)
    (split,) = splits
    photographs = sorted(
        {photograph_of(item.file_name) for item in split.items},
        key=lambda name: (xxhash.xxh3_64_intdigest(name.encode()), name),
    )
    if len(photographs) < 2:
        raise DataError(
            "there is only one photograph, so none can be held out for validation",
            where=f"split {split.name}",
            fix="add photographs with labels",
        )
    val = set(photographs[: max(1, round(share * len(photographs)))])
    sides = {
        name: [item for item in split.items if (photograph_of(item.file_name) in val) == is_val]
        for name, is_val in (("train", False), ("val", True))
    }
    report(
        f"{len(val)} of {len(photographs)} photographs are held out: train has "
        f"{len(sides['train'])} images, val has {len(sides['val'])}"
    )
    return [
        replace(split, name="train", items=sides["train"]),
        replace(split, name="val", items=sides["val"], findings=()),
    ]
