"""Check one sample of a shard set against its own truth."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from shards.errors import DataError
from shards.format.codec import check_round_trip, decode
from shards.format.images import image_of
from shards.format.schema import Sample

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
    if found.keys() != set(names):
        raise DataError(
            f"the members are {', '.join(sorted(found))}, those of the set "
            f"{', '.join(sorted(names))}",
            where=key,
            fix=_REBUILD,
        )
    sample = decode(key, found)
    image_of(sample)
    for problem in (_wrong_entry(sample, classes), _wrong_map(sample, classes)):
        if problem:
            raise DataError(problem, where=key, fix=_REBUILD)
    check_round_trip(sample, found)


def _wrong_entry(sample: Sample, classes: int) -> str | None:
    """Return what is wrong with the entries, or None."""
    for name, entries, truth in (
        ("segments", sample.segments, sample.segments_map),
        ("instances", sample.instances, sample.layers),
    ):
        if (entries is None) != (truth is None):
            return f"only one of the json and {name}.png has {name}"
        for entry in entries or ():
            if not 0 <= entry.category < classes:
                return f"entry {entry.id} has category {entry.category} of {classes}"
    return None


def _wrong_map(sample: Sample, classes: int) -> str | None:
    """Return which map holds a value without a meaning, or None."""
    segments = sample.segments or []
    if sample.segments_map is not None and sample.segments_map.max(initial=0) > len(segments):
        return f"segments.png has more values than the {len(segments)} entries"
    if sample.semantic is not None and sample.semantic.max(initial=0) > classes:
        return f"semantic.png has values beyond the {classes} classes"
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
