"""Segment images from Python with the network of a run."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import config as configs
from jobs.config import Config
from jobs.stored import opened
from jobs.tiled.grid import Tiling
from jobs.tiled.infer import infer_tiled
from pipeline.pictures.regions import Region, RegionMap, predicted_regions
from pipeline.pictures.render import overlay
from pipeline.pictures.sheet import write_png
from pipeline.run import checkpoint as checkpoints
from pipeline.run.folder import choose_checkpoint
from pipeline.run.restore import load_model
from pipeline.score.inference import InferenceSettings, Result, infer
from shards.files import read_regular, sha256
from shards.format.images import decode_image
from shards.format.taxonomy import Taxonomy


@dataclass(frozen=True)
class Segmented:
    """An image and its segments.

    Attributes:
        image: RGB `uint8 [H, W, 3]`.
        result: The predictions of all three tasks; `result.panoptic` is the map of the segments.
        taxonomy: The classes.
        task: The task that is drawn: "panoptic" (also for instances), or "semantic".
    """

    image: np.ndarray
    result: Result
    taxonomy: Taxonomy
    task: str

    @property
    def segments(self) -> list[dict[str, Any]]:
        """The `id` in `result.panoptic`, `name`, `isthing`, and `score` of each segment."""
        return [
            {
                "id": segment["id"],
                "name": self.taxonomy.names[segment["category"]],
                "isthing": segment["isthing"],
                "score": segment["score"],
            }
            for segment in self.result.segments
        ]

    @cached_property
    def regions(self) -> RegionMap:
        """What is drawn: the segments, or the class of each pixel."""
        if self.task != "semantic":
            return predicted_regions(self.result)
        present = np.flatnonzero(np.bincount(self.result.semantic.ravel())).tolist()
        regions = [Region(category + 1, category) for category in present]
        return RegionMap(self.result.semantic.astype(np.int32) + 1, regions)

    @cached_property
    def picture(self) -> np.ndarray:
        """The image under its segments, RGB `uint8 [H', W', 3]`; small images are enlarged."""
        return overlay(self.image, *self.regions, self.taxonomy)

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG."""
        write_png(Path(path), self.picture)


class Segmenter:
    """A trained network that segments images of any size.

    Args:
        run: A name under runs/, a path, or a URL.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.
        threshold: The least score of segments. Defaults to that of the run.
        task: What is drawn, "panoptic", "instance", or "semantic". Defaults to the run's task.
        device: The device of the network. Defaults to the GPU if there is one.
        tile: The longest side of the tiles in which larger images are segmented, in pixels, at
            least 32. By default, every image is segmented as a whole.
        tile_overlap: The least number of pixels that tiles share with their neighbors, at most a
            third of `tile`. Defaults to an eighth of it.

    Raises:
        UsageError: The run has no such checkpoint, or the sizes of tiles do not fit each other.
    """

    def __init__(
        self,
        run: str | Path,
        checkpoint: str | None = None,
        threshold: float | None = None,
        task: str | None = None,
        device: torch.device | str | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ):
        self.tiling = Tiling.of(tile, tile_overlap)
        with opened(str(run), checkpoint) as folder:
            config = configs.load_run(folder)
            self.settings = settings_of(config, threshold)
            self.task = task or config.task
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model, self.taxonomy, self.step = load_model(
                config.model, config.task, folder, checkpoint, self.device
            )

    def __call__(self, image: str | os.PathLike[str] | np.ndarray) -> Segmented:
        """Segment an image.

        Args:
            image: A path, or RGB `uint8 [H, W, 3]`.

        Raises:
            OSError: The file cannot be read.
            DataError: It does not decode.
        """
        if not isinstance(image, np.ndarray):
            image = decode_image(read_regular(Path(image)), str(image))
        inputs = self.model, image, self.settings, self.taxonomy.things, self.device
        result = infer_tiled(*inputs, self.tiling) if self.tiling else infer(*inputs)
        return Segmented(image, result, self.taxonomy, self.task)


def settings_of(config: Config, threshold: float | None) -> InferenceSettings:
    """Return the settings of a run with another least score of segments."""
    if threshold is None:
        return config.evaluation
    segment = replace(config.evaluation.segment, object_threshold=threshold)
    return replace(config.evaluation, segment=segment)


def weights_id(folder: Path, checkpoint: str | None, task: str) -> str:
    """Return what differs between two checkpoints: the hash of a manifest with hashes."""
    return sha256(choose_checkpoint(folder, checkpoint, task) / checkpoints.MANIFEST)
