"""Samples of third-party tars, which are read in place: nothing is copied or changed.

A sample is the consecutive members of one key, as in `webdataset`: an image, a map of labels, and
perhaps a map of instance numbers, with the meaning that they have for `build folder`
(docs/folder.md). `Foreign` in the manifest says which members these are.
"""

import io

from shards.errors import DataError
from shards.format.label_maps import labels_in, labels_of, truth_of_maps
from shards.format.manifest import Foreign, Manifest
from shards.format.schema import Sample, png_size, rights_of
from shards.format.third_party_tar import third_party_samples

SOURCE = "webdataset"
_AGAIN = "index the tars again"


def decode_third_party(key: str, blob: bytes, manifest: Manifest, foreign: Foreign) -> Sample:
    """Decode a sample from its bytes.

    Args:
        key: The sample's key in the index, which may have the name of its tar before the tar's key.
        blob: The bytes of the sample's members, which `index` has examined.
        manifest: The manifest of the sample's set.
        foreign: What the members mean.

    Raises:
        DataError: The bytes are not those of a sound sample.
    """
    found = [sample.members for sample in third_party_samples(io.BytesIO(blob), key)]
    wanted = [ext for ext in (foreign.image, foreign.labels, foreign.instances) if ext]
    if len(found) != 1 or not found[0].keys() >= set(wanted):
        listed = " and ".join(wanted)
        raise DataError(f"the bytes are not one sample with {listed}", where=key, fix=_AGAIN)
    size = png_size(found[0][foreign.labels])  # `index` accepts only PNGs of the image's size
    if size is None:
        raise DataError("the map of labels is not a PNG", where=key, fix=_AGAIN)
    return sample_of(key, found[0], size, manifest, foreign)


def sample_of(
    key: str,
    found: dict[str, bytes],
    size: tuple[int, int],
    manifest: Manifest,
    foreign: Foreign,
) -> Sample:
    """Return a sample from its members.

    Args:
        key: The sample's key.
        found: The members by extension.
        size: The width and height of the image.
        manifest: The manifest of the sample's set.
        foreign: What the members mean.

    Raises:
        Reject: The truth is damaged or contradicts itself.
    """
    taxonomy = manifest.taxonomy
    labels_map, *instances_map = [
        (f"{key}.{ext}", labels_in(found[ext], f"{key}.{ext}", size))
        for ext in (foreign.labels, foreign.instances)
        if ext
    ]
    truth = truth_of_maps(
        labels_of(taxonomy, foreign.ignored),
        taxonomy.things,
        labels_map,
        instances_map[0] if instances_map else None,
    )
    width, height = size
    return Sample(
        key=key,
        image=found[foreign.image],
        ext=foreign.image,
        file_name=f"{key}.{foreign.image}",
        source=SOURCE,
        image_id=key,
        width=width,
        height=height,
        rights=rights_of(*manifest.licence),
        **truth,
    )
