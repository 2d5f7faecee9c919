"""What happens to one sample on its way into a batch: decode, augment."""

from typing import Any

import cv2
import numpy as np

from pipeline.augment import AugmentSettings, fit, large_scale_jitter
from pipeline.batch import truth_of, without_empty
from pipeline.order import keyed_generator
from shards.errors import DataError
from shards.index import members
from shards.schema import decode


def read_image(encoded: bytes, name: str) -> np.ndarray:
    """Encoded image -> u8 [H,W,3] RGB, EXIF rotation applied. Raises DataError naming `name`."""
    buffer = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if encoded else None
    if image is None:
        raise DataError(f"{name}: the image does not decode; build the set again without it")
    return image


def decode_stage(sample: dict[str, Any], task: str, num_things: int) -> dict[str, Any]:
    """blob -> image u8 [H,W,3] and truth."""
    record = decode(members(sample.pop("blob")))
    image = read_image(record["image"], sample["key"])
    if image.shape[:2] != (record["json"]["height"], record["json"]["width"]):
        raise DataError(f"{sample['key']}: image and truth differ in size")
    return sample | {"image": image, "truth": truth_of(record, task, num_things)}


def augment_stage(sample: dict[str, Any], settings: AugmentSettings, seed: int) -> dict[str, Any]:
    """image u8 [3,crop,crop] and its truth, drawn from (seed, epoch, key)."""
    truth = sample["truth"]
    if settings.augment == "none":
        image, maps, size = fit(sample["image"], truth.maps, settings.crop)
    else:
        random = keyed_generator(seed, sample["epoch"], sample["key"], "augment")
        image, maps, size = large_scale_jitter(
            sample["image"], truth.maps, random, settings.crop, tuple(settings.scale)
        )
    truth = truth._replace(maps=maps)
    if not settings.keep_empty:
        truth = without_empty(truth)
    return sample | {"image": image, "truth": truth, "size": size}
