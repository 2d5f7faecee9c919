"""Decoding, LSJ-1024 and targets on one core, beside a mapper with the steps of Detectron2's.

The mapper is written here after the published data path: Pillow decodes, flips, resizes and crops
the image and the RGB panoptic PNG, and every segment becomes a separate bool tensor. Both sides
draw the same random numbers. M2F_COCO names a COCO folder; without it, the CC BY sample is used.
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from jobs.bench import alternate, peak_mib_of, row
from jobs.bench.overfit import SAMPLE
from pipeline.data.augment.recipes import PAD_VALUE
from pipeline.data.batch import Batch, collate
from pipeline.data.keyed import keyed_generator
from pipeline.data.loader import loader
from pipeline.data.split import BatchSplit
from pipeline.data.stages import augment_stage, decode_stage
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_stream
from shards.build.build import build

SETTINGS = DataSettings()
MICRO = 2
SEED = 0
IMAGES = 70
BATCHES = 20  # from a loader process, to measure its memory
PUBLISHED_MS = 27  # published time of such a mapper per COCO image on one core


def rows() -> list[dict]:
    """Measure images per second and core, bytes of labels, and the memory of a loader process."""
    raw = coco()
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build("coco", raw, Path(folder), splits=["train"], limit=IMAGES, report=lambda _: None)
        store = Store(Path(folder) / "train")
        mapper = Mapper(raw)
        seconds = alternate({
            "ours": lambda: [ours(store, number) for number in range(len(store))],
            "mapper": lambda: [mapper(key) for key in store.index.key],
        })  # fmt: skip
        labels = [_label_bytes(collate([ours(store, n)])) for n in range(len(store))]
        masks = [mapper(key)[1].nbytes for key in store.index.key]
        memory = _loader_memory(store)
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])
    name = "d2-style mapper, ours"
    mapper_ms = seconds["mapper"] / len(store) * 1000
    return [
        row("stream.lsj_rate", "images/s/core", len(store) / seconds["ours"], better="higher",
            target=">= 2.5x", peer=len(store) / seconds["mapper"], peer_name=name),
        row("stream.label_bytes", "MB/image", _mean_mb(labels), better="lower",
            target="<= 0.15x", peer=_mean_mb(masks), peer_name="one bool mask per object"),
        row("stream.mapper_time", "ms/image", mapper_ms, better="lower", target="0.7x to 1.3x",
            peer=PUBLISHED_MS, peer_name="published cost"),
        row("stream.loader_memory", "MiB", memory, better="lower"),
    ]  # fmt: skip


def coco() -> Path:
    """Return the folder of the photographs to measure on."""
    return Path(os.environ.get("M2F_COCO", SAMPLE))


def ours(store: Store, number: int) -> dict:
    """Process one sample from its bytes in the shard up to collation."""
    sample = {"key": store.index.key[number], "position": number, "epoch": 0}
    decoded = decode_stage(
        sample | {"stored": store.load(number)}, "panoptic", store.manifest.taxonomy.things
    )
    return augment_stage(decoded, SETTINGS, "panoptic", SEED)


class Mapper:
    """A panoptic LSJ mapper from raw files, with the steps of Detectron2's."""

    def __init__(self, raw: Path):
        self.raw = raw
        document = json.loads((raw / "annotations/panoptic_train2017.json").read_text())
        self.segments = {
            Path(entry["file_name"]).stem: entry["segments_info"]
            for entry in document["annotations"]
        }

    def __call__(self, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map one image.

        Returns:
            The image uint8 [3, 1024, 1024], the masks bool [N, 1024, 1024], and the publisher's
            category ids int64 [N].
        """
        random = keyed_generator(SEED, 0, key, "augment")
        smallest, largest = SETTINGS.scale
        flip, s, u = random.random(), random.uniform(smallest, largest), random.random()
        crop = SETTINGS.crop
        photograph = ImageOps.exif_transpose(Image.open(self.raw / f"train2017/{key}.jpg"))
        image = np.asarray(photograph.convert("RGB"))
        png = self.raw / f"annotations/panoptic_train2017/{key}.png"
        colors = np.asarray(Image.open(png).convert("RGB"))
        if flip < 0.5:
            image, colors = (np.ascontiguousarray(part[:, ::-1]) for part in (image, colors))
        factor = min(crop * s / side for side in image.shape[:2])
        height, width = (round(side * factor) for side in image.shape[:2])
        image = _resized(image, height, width, Image.Resampling.BILINEAR)
        colors = _resized(colors, height, width, Image.Resampling.NEAREST)
        top, left = (round(max(side - crop, 0) * u) for side in (height, width))
        image = _fixed_size(image[top : top + crop, left : left + crop], PAD_VALUE)
        colors = _fixed_size(colors[top : top + crop, left : left + crop], 0).astype(np.uint32)
        ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
        kept = [segment for segment in self.segments[key] if not segment["iscrowd"]]
        masks = [ids == segment["id"] for segment in kept]
        return (
            torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.stack([torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks])
            if masks else torch.zeros(0, crop, crop, dtype=torch.bool),
            torch.tensor([segment["category_id"] for segment in kept]),
        )  # fmt: skip


def _resized(array: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((width, height), how))


def _fixed_size(array: np.ndarray, fill: int) -> np.ndarray:
    rows, columns = array.shape[:2]
    padding = (0, SETTINGS.crop - rows), (0, SETTINGS.crop - columns), (0, 0)
    return np.pad(array, padding, constant_values=fill)


def _mean_mb(sizes: Sequence[int]) -> float:
    return float(np.mean(sizes)) / 1e6


def _label_bytes(batch: Batch) -> int:
    return sum(part.nbytes for part in batch.targets)


def _loader_memory(store: Store) -> float:
    """Return the peak resident memory of a loader process in MiB, with torch's shared pages."""
    stream = train_stream(SETTINGS, [store], "panoptic", SEED, 0, BatchSplit(MICRO, MICRO))
    batches = loader(stream, 1)
    peak = 0.0
    for _ in islice(batches, BATCHES):
        for process in multiprocessing.active_children():
            assert process.pid is not None
            peak = max(peak, peak_mib_of(process.pid))
    return peak
