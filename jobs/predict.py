"""`predict`: panoptic overlays and JSON in COCO's formats for images.

The files in the output folder, for each image by its id (see `ImageFiles`):

- ID.png: the image under its segments
- panoptic/ID.png and panoptic.json: COCO's panoptic format
- instances.json: COCO's results format, with the names of the classes
- summary.json: the counts, and the images that were left out, each with the reason

The JSON files are written last.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from jobs import config as configs
from jobs.cluster.ray_cluster import check_shared
from jobs.cluster.target import HERE, Target
from jobs.config import Config
from jobs.image_files import PANOPTIC, ImageFiles, find_images
from jobs.inference import call_on_cluster, inference_device, opened_on_rank
from jobs.outputs import OutputFolder
from jobs.predictions import INSTANCES, SUMMARY, Results
from jobs.worker import Job
from model.mask2former import Mask2Former
from model.network_settings import SegmentSettings
from pipeline.distributed import all_gather, call_on_all_ranks, rank_and_world
from pipeline.pictures.regions import predicted_regions
from pipeline.pictures.render import overlay
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, PICTURES
from pipeline.run.restore import choose_checkpoint, load_model
from pipeline.score.inference import InferenceSettings, Result, infer, why_empty
from shards.errors import DataError, M2FError
from shards.files import disk_errors, is_url, read_regular
from shards.format.images import decode_image
from shards.format.taxonomy import Taxonomy
from shards.text import say

NAMED = 3  # inputs that the error names; all are printed and in SUMMARY


@dataclass(frozen=True)
class Use:
    """What images are segmented with: a checkpoint of a run, and the least score."""

    folder: Path
    checkpoint: str | None
    threshold: float | None

    def settings(self, config: Config) -> InferenceSettings:
        """Return the settings of the run with the least score of segments."""
        if self.threshold is None:
            return config.evaluation
        segment = replace(config.evaluation.segment, object_threshold=self.threshold)
        return replace(config.evaluation, segment=segment)

    def load(self, config: Config, device: torch.device) -> tuple[Mask2Former, Taxonomy, int]:
        """Return the network, its classes, and the step of its checkpoint."""
        return load_model(config.model, config.task, self.folder, self.checkpoint, device)

    def segment(
        self,
        network: tuple[Mask2Former, Taxonomy, int],
        config: Config,
        images: ImageFiles,
        out: Path,
        device: torch.device,
    ) -> Results:
        """Segment the images, which the ranks of a process group share; return all results."""
        model, taxonomy, step = network
        results = Results(out, taxonomy, step, self.threshold or 0)
        segment = partial(
            infer, model, settings=self.settings(config), things=taxonomy.things, device=device
        )
        rank, world = rank_and_world()
        paths = list(images.paths.items())[rank::world]
        _segment_all(images, paths, segment, results)
        return results.merged(all_gather(results))


def _segment_on_rank(
    use: Use, run: str, images: ImageFiles, out: Path, config: Config, job: Job
) -> Results:
    """Segment the images of this rank, of a process group on a cluster."""
    call_on_all_ranks(lambda: check_shared([out]))
    device = inference_device()
    with opened_on_rank(run, use.checkpoint) as folder:
        network = replace(use, folder=folder).load(config, device)
        return use.segment(network, config, images, out, device)


def predict(
    run: str,
    paths: list[Path],
    out: Path,
    checkpoint: str | None = None,
    threshold: float | None = None,
    target: Target = HERE,
    source: str = "",
) -> dict[str, Any]:
    """Segment images with a run's checkpoint.

    An image that cannot be used is left out, and the rest is done.

    Args:
        run: A name under runs/, or a path.
        paths: Images, or folders of images.
        out: The folder for the results, new or of an earlier `predict`.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.
        threshold: The least score of segments and instances. Defaults to the run's threshold for
            segments, and to all instances.
        target: This machine, or a Ray cluster whose workers share the images.
        source: The URL of the run if it is on storage, and `run` is its copy on this machine.

    Returns:
        What summary.json holds.

    Raises:
        UsageError: A path has no image, or `out` holds something else or one of the images.
        DataError: Images were left out; everything else is written.
    """
    images = find_images(paths)
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    use, device = Use(folder, checkpoint, threshold), inference_device()
    if target.cluster:
        choose_checkpoint(folder, checkpoint, config.task)  # before anything is written
        network = None
    else:
        network = use.load(config, device)
    own = [folder / name for name in (CHECKPOINTS, EVALUATIONS, PICTURES)]
    output = OutputFolder(out, "predict", _names(images), [*images.paths.values(), *own])
    with disk_errors(out):
        if network:
            results = use.segment(network, config, images, output.path, device)
        else:
            shown = source if is_url(source) else str(folder)
            work = partial(_segment_on_rank, use, shown, images, output.path)
            results = call_on_cluster(work, config, folder, target.address, "predicting")
        summary = results.write(images, folder.name)
        output.finish()
    _print(summary, out, use.settings(config).segment)
    left_out = results.left_out(images)
    if left_out:
        raise DataError(
            f"{_some(left_out)} left out, and {summary['images']} images are done",
            where=output.path / SUMMARY,
            fix="replace or remove them, and run the same command again",
        )
    return summary


def _segment_all(
    images: ImageFiles,
    paths: list[tuple[str, Path]],
    segment: Callable[[np.ndarray], Result],
    results: Results,
) -> None:
    """Add images to the results, by their ids and paths."""
    for id, path in track(paths, description="predicting", transient=True):
        try:
            image = _read(path)
            result = segment(image)
            picture = overlay(image, *predicted_regions(result), results.taxonomy)
        except (M2FError, MemoryError, torch.OutOfMemoryError) as error:
            results.reasons[id] = _reason(error)
        else:
            results.add(id, images.name(path), image, result, picture)


def _names(images: ImageFiles) -> list[str]:
    """Return the names of all files that are written, relative to the folder of the results."""
    pictures = [name for id in images.paths for name in (f"{id}.png", f"{PANOPTIC}/{id}.png")]
    return [*pictures, f"{PANOPTIC}.json", INSTANCES, SUMMARY]


def _read(path: Path) -> np.ndarray:
    """Return the image in a file.

    Raises:
        DataError: It cannot be read or does not decode.
    """
    try:
        encoded = read_regular(path)
    except OSError as error:
        raise DataError(error.strerror or str(error), where=path) from error
    if not encoded:
        raise DataError("the file is empty", where=path)
    return decode_image(encoded, str(path))


def _reason(error: BaseException) -> str:
    if isinstance(error, M2FError):
        return error.problem.what
    return "there is not enough memory for it"


def _some(left_out: dict[str, str]) -> str:
    """Return the number of inputs that were left out, with the reasons for the first of them."""
    shown = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:NAMED])
    more = "; …" if len(left_out) > NAMED else ""
    return f"{len(left_out)} of the inputs ({shown}{more}) were"


def _print(summary: dict[str, Any], out: Path, settings: SegmentSettings) -> None:
    """Print the counts, the images without segment and why, and what was left out."""
    for row in summary["left_out"]:
        say(f"left out: {row['file']}: {row['reason']}")
    if ignored := summary["ignored"]:
        say(f"ignored hidden files: {', '.join(ignored)}")
    if empty := summary["without_segment"]:
        why = why_empty(max(row["highest_score"] for row in empty), settings)
        say(f"{len(empty)} of {summary['images']} images have no segment: {why}")
    say(f"{summary['images']} images, {summary['segments']} segments: {out}")
