"""`predict`: panoptic overlays and JSON in COCO's formats for images.

The files in the output folder, for each image by its id (see `ImageFiles`):

- ID.png: the image under its segments
- panoptic/ID.png and panoptic.json: COCO's panoptic format
- instances.json: COCO's results format, with the names of the classes
- summary.json: the counts, and the images that were left out, each with the reason

The JSON files are written last.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from jobs import config as configs
from jobs.coco_results import categories, id_colors, instance_entries, panoptic_entry
from jobs.image_files import PANOPTIC, ImageFiles, find_images
from jobs.outputs import OutputFolder
from pipeline.pictures.regions import predicted_regions
from pipeline.pictures.render import overlay
from pipeline.pictures.sheet import write_png
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, PICTURES
from pipeline.run.restore import load_model
from pipeline.score.inference import Result, infer, why_empty
from shards.errors import DataError, M2FError
from shards.files import disk_errors, read_regular, write_json
from shards.format.images import decode_image
from shards.format.taxonomy import Taxonomy
from shards.text import say

INSTANCES, SUMMARY = "instances.json", "summary.json"
NAMED = 3  # inputs that the error names; all are printed and in SUMMARY


def predict(
    run: str,
    paths: list[Path],
    out: Path,
    checkpoint: str | None = None,
    threshold: float | None = None,
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

    Returns:
        What summary.json holds.

    Raises:
        UsageError: A path has no image, or `out` holds something else or one of the images.
        DataError: Images were left out; everything else is written.
    """
    images = find_images(paths)
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, taxonomy, step = load_model(config.model, config.task, folder, checkpoint, device)
    settings = config.evaluation
    if threshold is not None:
        settings = replace(settings, segment=replace(settings.segment, object_threshold=threshold))
    own = [folder / name for name in (CHECKPOINTS, EVALUATIONS, PICTURES)]
    output = OutputFolder(out, "predict", _names(images), [*images.paths.values(), *own])
    results = Results(output.path, taxonomy, threshold or 0)
    segment = partial(infer, model, settings=settings, things=taxonomy.things, device=device)
    with disk_errors(out):
        left_out = _segment_all(images, segment, results, f"predicting with step {step}")
        summary = {
            "run": folder.name,
            "step": step,
            **results.counts(),
            "left_out": [{"file": name, "reason": why} for name, why in left_out.items()],
            "ignored": [images.name(path) for path in images.ignored],
        }
        results.write(summary)
        output.finish()
    _print(summary, out, why_empty(max(results.empty.values(), default=0), settings.segment))
    if left_out:
        raise DataError(
            f"{_some(left_out)} left out, and {summary['images']} images are done",
            where=output.path / SUMMARY,
            fix="replace or remove them, and run the same command again",
        )
    return summary


class Results:
    """The predictions of several images: the pictures at once, the JSON files at the end.

    Attributes:
        taxonomy: The classes.
        empty: The highest score in each image without a segment, by the image's name.
    """

    def __init__(self, folder: Path, taxonomy: Taxonomy, least_score: float):
        self._folder, self.taxonomy, self._least_score = folder, taxonomy, least_score
        self._images: list[dict[str, Any]] = []
        self._segments: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self.empty: dict[str, float] = {}

    def add(
        self, id: str, name: str, image: np.ndarray, result: Result, picture: np.ndarray
    ) -> None:
        """Write the pictures of an image, and keep its entries for the JSON files."""
        write_png(self._folder / f"{id}.png", picture)
        write_png(self._folder / PANOPTIC / f"{id}.png", id_colors(result.panoptic))
        height, width = image.shape[:2]
        self._images.append({"id": id, "file_name": name, "height": height, "width": width})
        self._segments.append(panoptic_entry(id, result, self.taxonomy))
        self._instances += instance_entries(id, result, self.taxonomy, self._least_score)
        if not result.segments:
            self.empty[name] = float(result.highest_scores.max())

    def counts(self) -> dict[str, Any]:
        """Return the numbers of images, segments, and instances, and the images without segment."""
        return {
            "images": len(self._images),
            "segments": sum(len(entry["segments_info"]) for entry in self._segments),
            "instances": len(self._instances),
            "without_segment": [
                {"file": name, "highest_score": score} for name, score in self.empty.items()
            ],
        }

    def write(self, summary: dict[str, Any]) -> None:
        """Write the JSON files."""
        panoptic = {"images": self._images, "annotations": self._segments}
        panoptic["categories"] = categories(self.taxonomy)
        write_json(self._folder / f"{PANOPTIC}.json", panoptic)
        write_json(self._folder / INSTANCES, self._instances)
        write_json(self._folder / SUMMARY, summary)


def _segment_all(
    images: ImageFiles, segment: Callable[[np.ndarray], Result], results: Results, title: str
) -> dict[str, str]:
    """Add every image to the results; return the reason for each that is left out, by its name."""
    left_out = {images.name(path): reason for path, reason in images.unread.items()}
    for id, path in track(images.paths.items(), description=title, transient=True):
        name = images.name(path)
        try:
            image = _read(path)
            result = segment(image)
            picture = overlay(image, *predicted_regions(result), results.taxonomy)
        except (M2FError, MemoryError, torch.OutOfMemoryError) as error:
            left_out[name] = _reason(error)
        else:
            results.add(id, name, image, result, picture)
    return left_out


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


def _print(summary: dict[str, Any], out: Path, why: str) -> None:
    """Print the counts, the images without segment and why, and what was left out."""
    for row in summary["left_out"]:
        say(f"left out: {row['file']}: {row['reason']}")
    if ignored := summary["ignored"]:
        say(f"ignored hidden files: {', '.join(ignored)}")
    if empty := summary["without_segment"]:
        say(f"{len(empty)} of {summary['images']} images have no segment: {why}")
    say(f"{summary['images']} images, {summary['segments']} segments: {out}")
