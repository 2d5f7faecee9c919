"""`predict`: segment images of any origin, and do only what is missing when it is repeated.

docs/predict.md lists the files in the output folder. Those of an image are written when it is done,
its record last; those about all images at the end.
"""

from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from rich.progress import track

from jobs import config as configs
from jobs.cluster.ray_cluster import check_shared
from jobs.cluster.target import HERE, Target
from jobs.config import Config
from jobs.inference import call_on_cluster, inference_device, opened_on_rank
from jobs.outputs import OutputFolder
from jobs.predict.inputs import PANOPTIC, SEMANTIC, Images, find_images
from jobs.predict.results import INSTANCE, SUMMARY, Results
from jobs.segmenter import Segmenter, settings_of, weights_id
from jobs.tiled.grid import Tiling
from jobs.worker import Job
from model.network_settings import SegmentSettings
from pipeline.distributed import all_gather, call_on_all_ranks, rank_and_world
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, PICTURES
from pipeline.score.inference import why_empty
from shards.errors import DataError, M2FError
from shards.files import disk_errors, is_url
from shards.format.taxonomy import Taxonomy
from shards.text import say

NAMED = 3  # inputs that the error names; all are printed and in SUMMARY
TASKS = {PANOPTIC: (PANOPTIC, INSTANCE), INSTANCE: (INSTANCE,), SEMANTIC: (SEMANTIC,)}


@dataclass(frozen=True)
class Use:
    """What images are segmented with, and what is written.

    Attributes:
        checkpoint: "best", "last", or a step; None for the best with a known score.
        threshold: The least score of segments and instances; None for the run's threshold for
            segments, and for all instances.
        tasks: The tasks whose files are written; () for those of the run's task in TASKS.
        tiling: The tiles of larger images; None for images as a whole.
        has_polygons: Whether polygons of what is drawn are written too.
    """

    checkpoint: str | None = None
    threshold: float | None = None
    tasks: tuple[str, ...] = ()
    tiling: Tiling | None = None
    has_polygons: bool = False

    @property
    def drawn(self) -> str:
        """The task that is drawn."""
        return SEMANTIC if self.tasks == (SEMANTIC,) else PANOPTIC

    def segmenter(self, folder: Path) -> Segmenter:
        """Return the network of a run on the device of this rank."""
        sizes = astuple(self.tiling) if self.tiling else (None, None)
        device = inference_device()
        return Segmenter(folder, self.checkpoint, self.threshold, self.drawn, device, *sizes)


class Segmenting(NamedTuple):
    """The outcome of segmenting images: what `Results.finish` needs to know.

    Attributes:
        taxonomy: The classes.
        step: The step of the checkpoint.
        reasons: Why images were left out, by their ids.
    """

    taxonomy: Taxonomy
    step: int
    reasons: dict[str, str]


def predict(
    run: str,
    paths: list[str],
    out: Path,
    use: Use,
    target: Target = HERE,
    source: str = "",
) -> dict[str, Any]:
    """Segment images with a run's checkpoint.

    An image that cannot be used is left out, and the rest is done. Images that an earlier call has
    segmented in the same way are kept.

    Args:
        run: A name under runs/, or a path.
        paths: Images, folders of images, patterns, and shard sets.
        out: The folder for the results, new or of an earlier `predict`.
        use: What they are segmented with, and what is written.
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
    use = replace(use, tasks=use.tasks or TASKS[config.task])
    settings = settings_of(config, use.threshold)
    made_with = f"{weights_id(folder, use.checkpoint, config.task)} {settings}{use.tiling or ''}"
    least = use.threshold or 0
    results = Results(out.absolute(), use.tasks, least, made_with, use.has_polygons)
    done = results.done(images)
    segmenter = None if target.cluster else use.segmenter(folder)
    output = _output(out, results, images, done, folder)
    waiting = [id for id in images.sources if id not in done]
    if done:
        say(f"{len(done)} of {len(images.sources)} images are already done")
    with disk_errors(out):
        if segmenter:
            segmenting = _segment(segmenter, images, waiting, results)
        else:
            shown = source if is_url(source) else str(folder)
            work = partial(_segment_on_rank, use, shown, images, waiting, results)
            segmenting = call_on_cluster(work, config, folder, target.address, "predicting")
        about = {"run": folder.name, "step": segmenting.step}
        summary = results.finish(images, segmenting.taxonomy, about, segmenting.reasons)
        output.finish()
    _print(summary, out, settings.segment)
    _check_all_done(summary, results.folder)
    return summary


def _output(out: Path, results: Results, images: Images, done: set[str], run: Path) -> OutputFolder:
    """Prepare the output folder, with the files of the images that are done."""
    names = [name for id in images.sources for name in results.files(id)]
    kept = {name for id in done for name in results.files(id)}
    read = [*images.read, *(run / name for name in (CHECKPOINTS, EVALUATIONS, PICTURES))]
    return OutputFolder(out, "predict", [*names, *results.documents()], read, kept)


def _segment(
    segmenter: Segmenter, images: Images, waiting: list[str], results: Results
) -> Segmenting:
    """Segment the images, which the ranks of a process group share; return what all ranks did."""
    rank, world = rank_and_world()
    reasons: dict[str, str] = {}
    for id in track(waiting[rank::world], description="predicting", transient=True):
        try:
            source = images.sources[id]
            stamp = source.stamp()  # before it is read, so that a later change is noticed
            segmented = segmenter(source.read())
            results.write(id, images.names[id], stamp, segmented)
        except (M2FError, MemoryError, RuntimeError, cv2.error) as error:
            reasons[id] = _reason(error)
    gathered = {id: why for part in all_gather(reasons) for id, why in part.items()}
    return Segmenting(segmenter.taxonomy, segmenter.step, gathered)


def _segment_on_rank(
    use: Use,
    run: str,
    images: Images,
    waiting: list[str],
    results: Results,
    config: Config,
    job: Job,
) -> Segmenting:
    """Segment the images of this rank, of a process group on a cluster."""
    call_on_all_ranks(lambda: check_shared([results.folder]))
    with opened_on_rank(run, use.checkpoint) as folder:
        return _segment(use.segmenter(folder), images, waiting, results)


def _reason(error: BaseException) -> str:
    """Return why an image is left out; raise what is not its fault again."""
    if isinstance(error, M2FError):
        return error.problem.what
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError | cv2.error)
    if not is_memory and "alloc" not in str(error):  # torch on a CPU raises a plain RuntimeError
        raise error
    return "it cannot be drawn" if isinstance(error, cv2.error) else "not enough memory for it"


def _check_all_done(summary: dict[str, Any], folder: Path) -> None:
    """Raise DataError if images were left out."""
    if left_out := summary["left_out"]:
        raise DataError(
            f"{_some(left_out)} left out, and {summary['images']} images are done",
            where=folder / SUMMARY,
            fix="replace or remove them, and run the same command again",
        )


def _some(left_out: list[dict[str, str]]) -> str:
    """Return the number of inputs that were left out, with the reasons for the first of them."""
    shown = "; ".join(f"{row['file']}: {row['reason']}" for row in left_out[:NAMED])
    more = "; …" if len(left_out) > NAMED else ""
    return f"{len(left_out)} of the inputs ({shown}{more}) were"


def _print(summary: dict[str, Any], out: Path, settings: SegmentSettings) -> None:
    """Print the counts, the images without segment and why, and what was left out."""
    for row in summary["left_out"]:
        say(f"left out: {row['file']}: {row['reason']}")
    if ignored := summary["ignored"]:
        say(f"ignored hidden files: {', '.join(ignored)}")
    if empty := summary.get("without_segment"):
        why = why_empty(max(row["highest_score"] for row in empty), settings)
        say(f"{len(empty)} of {summary['images']} images have no segment: {why}")
    counts = [f"{summary[kind]} {kind}" for kind in ("images", "segments") if kind in summary]
    say(f"{', '.join(counts)}: {out}")
