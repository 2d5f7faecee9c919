"""Check one sample of a shard set against its own truth."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from shards.errors import DataError
from shards.format.codec import check_round_trip, decode
from shards.format.images import image_of
from shards.format.schema import MAX_PIXELS, MAX_VALUE, Instance, Sample

_REBUILD = "build the set again"


def check_sample(
    key: str, found: Mapping[str, bytes], names: Collection[str], classes: int
) -> None:
    """Decode a sample, check its truth, and encode and decode it again.

    Args:
        key: The sample's key.
        found: The sample's members by extension.
        names: The members that every sample of the set has.
        classes: The number of classes.

    Raises:
        DataError: The members differ from `names`, the image does not decode or differs in size
            from the truth, the maps contradict the entries, or something is lost on the round trip.
    """
    check_members(key, found, names)
    sample = decode(key, found)
    image_of(sample)
    check_truth(sample, classes)
    if problem := _wrong_layers(sample):
        raise DataError(problem, where=key, fix=_REBUILD)
    check_round_trip(sample, found)


def check_members(key: str, found: Collection[str], names: Collection[str]) -> None:
    """Check that a sample has the members that every sample of the set has.

    Raises:
        DataError: It has others.
    """
    if set(found) != set(names):
        raise DataError(
            f"the members are {', '.join(sorted(found))}, those of the set "
            f"{', '.join(sorted(names))}",
            where=key,
            fix=_REBUILD,
        )


def check_entries(sample: Sample, classes: int) -> None:
    """Check that the entries of a sample can be used.

    Raises:
        DataError: An entry has a class that the set does not have, or a value that no map has.
    """
    for entry in (*(sample.segments or ()), *(sample.instances or ())):
        if not 0 <= entry.category < classes:
            problem = f"entry {entry.id} has category {entry.category} of {classes}"
        elif entry.iscrowd not in (0, 1) or len(entry.bbox) != 4:
            problem = f"entry {entry.id} has iscrowd {entry.iscrowd} and a box {entry.bbox!s:.80}"
        elif isinstance(entry, Instance) and not (
            0 <= entry.value <= MAX_VALUE and 0 <= entry.layer < _layers(sample)
        ):
            problem = f"entry {entry.id} has layer {entry.layer} and value {entry.value}"
        else:
            continue
        raise DataError(problem, where=sample.key, fix=_REBUILD)


def check_truth(sample: Sample, classes: int) -> None:
    """Check that the truth of a sample can be used: its entries, and the values in its maps.

    Raises:
        DataError: Entries or values contradict each other or the number of classes.
    """
    segments = sample.segments or []
    for name, entries, truth in (
        ("segments", sample.segments, sample.segments_map),
        ("instances", sample.instances, sample.layers),
    ):
        if (entries is None) != (truth is None):
            problem = f"only one of the json and {name}.png has {name}"
            raise DataError(problem, where=sample.key, fix=_REBUILD)
    check_entries(sample, classes)
    problem = ""
    if sample.segments_map is not None and sample.segments_map.max(initial=0) > len(segments):
        problem = f"segments.png has more values than the {len(segments)} entries"
    if sample.semantic is not None and sample.semantic.max(initial=0) > classes:
        problem = f"semantic.png has values beyond the {classes} classes"
    if problem:
        raise DataError(problem, where=sample.key, fix=_REBUILD)


def _layers(sample: Sample) -> int:
    """Return the number of layers of a sample, or the most there can be if none was read."""
    return MAX_PIXELS if sample.layers is None else len(sample.layers)


def _wrong_layers(sample: Sample) -> str | None:
    """Return which value of the instance maps does not belong to one entry, or None."""
    if sample.layers is None:
        return None
    masks = Counter((entry.layer, entry.value) for entry in sample.instances or ())
    drawn = {
        (layer, int(value))
        for layer, values in enumerate(sample.layers)
        for value in np.flatnonzero(np.bincount(values.ravel()))
        if value
    }
    # value 0 is the background; entries without a pixel may share it
    shared = {mask for mask, count in masks.items() if count > 1 and mask[1]}
    if wrong := shared or drawn - masks.keys():
        return f"instances.png: layer and value {min(wrong)} do not belong to exactly one entry"
    return None
