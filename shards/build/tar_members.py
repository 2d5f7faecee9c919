"""Find out which members of a third-party tar are the image and the maps of a sample."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from shards.errors import DataError, UsageError
from shards.format.manifest import Foreign
from shards.format.schema import IMAGES, image_ext
from shards.format.third_party_tar import third_party_samples


def find_members(
    tars: Sequence[Path],
    image: str | None,
    labels: str | None,
    instances: str | None,
    ignored: tuple[int, ...],
) -> Foreign:
    """Return the members of a sample; those that are not given come from the first sample.

    That is the first one with the members that are given, an image, and a map.

    Raises:
        UsageError: A given member is missing or of another kind, or a member that is not given is
            not unique.
    """
    options = {"image": image, "labels": labels, "instances": instances}
    given = {name: ext and ext.lower().lstrip(".") for name, ext in options.items()}
    tar, found = _first_sample(tars, {ext for ext in given.values() if ext})
    pictures = [ext for ext in found if _kind(ext) in IMAGES]
    maps = [ext for ext in pictures if _kind(ext) == "png"]
    first = f"the first sample has the members {', '.join(found) or 'none'}"
    for name, ext in given.items():
        if ext and ext not in (pictures if name == "image" else maps):
            kinds = ", ".join(IMAGES) if name == "image" else "png"
            raise UsageError(
                f"--{name} {ext} is missing or of another kind ({kinds}); {first}", where=tar
            )
    photographs = [ext for ext in pictures if ext not in maps]
    other_maps = [ext for ext in maps if ext not in given.values()]
    return Foreign(
        image=given["image"] or _only(photographs, "image", tar, first),
        labels=given["labels"] or _only(other_maps, "labels", tar, first),
        instances=given["instances"],
        ignored=ignored,
    )


def _first_sample(tars: Sequence[Path], given: set[str]) -> tuple[Path, dict[str, bytes]]:
    """Return the members of the first sample that has those given and two pictures, and its tar.

    If none has them, return the first sample with a picture, or no members.
    """
    best: tuple[Path, dict[str, bytes]] | None = None
    for tar in tars:
        with tar.open("rb") as file:
            for sample in third_party_samples(file, str(tar)):
                pictures = [ext for ext in sample.members if _kind(ext) in IMAGES]
                if len(pictures) > 1 and given <= sample.members.keys():
                    return tar, sample.members
                if pictures and best is None:
                    best = tar, sample.members
    return best or (tars[0], {})


def _only(candidates: list[str], name: str, tar: Path, first: str) -> str:
    """Return the only candidate for a member that is not given."""
    if len(candidates) != 1:
        raise UsageError(first, where=tar, fix=f"choose one with --{name} EXTENSION")
    return candidates[0]


def _kind(ext: str) -> str:
    """Return the image format that an extension such as `labels.png` names, or ""."""
    with contextlib.suppress(DataError):
        return image_ext(f"a.{ext}")
    return ""
