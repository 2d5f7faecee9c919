"""Read samples of a shard set from their bytes, whoever wrote its tars."""

from dataclasses import replace

from shards.errors import DataError
from shards.files import Mapped
from shards.format.check import check_entries, check_members, check_truth
from shards.format.codec import decode, decode_json, decode_map
from shards.format.manifest import Manifest
from shards.format.schema import SEMANTIC, Sample
from shards.format.tar import member, members, unpack
from shards.format.third_party import decode_third_party


def read_sample(
    manifest: Manifest, key: str, blob: bytes, *, hash_verified: bool = False
) -> Sample:
    """Decode a sample; its image stays encoded.

    Args:
        manifest: The manifest of the sample's set.
        key: The sample's key.
        blob: The bytes of its members with their headers.
        hash_verified: Whether the hash of the bytes was compared with the index. Then the headers
            are not checked again.

    Raises:
        DataError: The bytes are damaged, or the truth contradicts itself or the manifest.
    """
    if manifest.foreign:
        return decode_third_party(key, blob, manifest, manifest.foreign)
    found = unpack(blob) if hash_verified else members(blob)
    check_members(key, found, manifest.members)
    sample = decode(key, found)
    check_truth(sample, len(manifest.taxonomy))
    return sample


def read_truth(manifest: Manifest, key: str, blob: Mapped, start: int, end: int) -> Sample:
    """Read what a sample's entries and classes need, and nothing else.

    That is the JSON alone, and the semantic map of a sample without other truth.

    Args:
        manifest: The manifest of the sample's set.
        key: The sample's key.
        blob: A shard.
        start: The first byte of the sample in the shard.
        end: The byte after its last.

    Returns:
        The sample, without its image and without the other maps.

    Raises:
        DataError: The sample is damaged.
    """
    if manifest.foreign:
        return decode_third_party(key, blob[start:end], manifest, manifest.foreign)
    sample = decode_json(key, member(blob, start, end, "json"))
    check_entries(sample, len(manifest.taxonomy))
    if sample.segments is not None or sample.instances is not None:
        return sample
    semantic = decode_map(member(blob, start, end, SEMANTIC), f"{key}.{SEMANTIC}")
    if semantic.shape != (sample.height, sample.width):
        raise DataError(
            "the map has another size than the image",
            where=f"{key}.{SEMANTIC}",
            fix="rebuild the shard",
        )
    sample = replace(sample, semantic=semantic)
    check_truth(sample, len(manifest.taxonomy))
    return sample
