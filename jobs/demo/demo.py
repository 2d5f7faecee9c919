"""`demo`: painted data, shards, training, scores, and pictures, all in small."""

import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from jobs.build import build
from jobs.demo.shapes import generate
from jobs.evaluate import evaluate
from jobs.outputs import claim
from jobs.train import train
from pipeline.run.folder import PICTURES, all_scores
from pipeline.score.headline import HEADLINE
from shards.build.options import BuildOptions
from shards.errors import UsageError

TRAIN_IMAGES, VAL_IMAGES, SIDE, SEED = 2000, 100, 96, 0


def demo(out: Path) -> dict[str, Any]:
    """Run every step of the demo, except those that are done already.

    Args:
        out: The folder for the data, the shards, the run, and the pictures.

    Returns:
        The scores of the trained network on the held-out images.

    Raises:
        UsageError: The folder cannot be written, or holds what the demo did not write.
    """
    out = out.absolute()
    claim(out, "demo")
    raw, shards = out / "raw", out / "shards"
    start = time.perf_counter()
    print_title("1/4 paint a data set in COCO's raw layout (panoptic and instances)")
    paint_set(raw, TRAIN_IMAGES, VAL_IMAGES)
    print_title("2/4 build shards, as for COCO: ./launch.sh build coco")
    build(BuildOptions("coco", raw, shards))
    print_title("3/4 train: ./launch.sh train tiny, 2 Ray workers with DeepSpeed ZeRO-1")
    folder = train(
        "tiny",
        [
            f"data.train={shards / 'train'}",
            f"data.val={shards / 'val'}",
            "evaluation.at_start=true",
            f"runs={out / 'runs'}",
        ],
        command=shlex.join(["./launch.sh", "demo", "--out", str(out)]),
    )
    print_title("4/4 score the held-out images: ./launch.sh evaluate")
    scores = evaluate(str(folder))
    _print_scores(untrained=all_scores(folder)[0], trained=scores)
    print(f"""
done in {time.perf_counter() - start:.0f} s; all files are in {out}
  pictures, truth beside prediction   {folder / PICTURES}
  scores, metrics, events, config     {folder}
  raw data and shards                 {raw}, {shards}

next
  ./launch.sh predict {folder} {raw / "val2017"} --out {out / "predictions"}
  ./launch.sh build coco --root COCO --out SHARDS
  ./launch.sh train coco_panoptic_r50 data.train=SHARDS/train data.val=SHARDS/val""")
    return scores


def paint_set(raw: Path, train: int, val: int) -> None:
    """Paint a data set of a number of images, unless a complete one exists.

    Raises:
        UsageError: The folder cannot be written.
    """
    mark = raw / "painted"  # written last
    parameters = f"{train} {val} {SIDE} {SEED}"
    if mark.exists() and mark.read_text() == parameters:
        print(f"already painted: {raw}")
        return
    try:
        shutil.rmtree(raw, ignore_errors=True)
        generate(raw, train, val, SIDE, SEED)
        mark.write_text(parameters)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(reason, where=raw, fix="give another folder with --out") from error
    print(f"{train} + {val} images of {SIDE} x {SIDE} pixels: {raw}")


def _print_scores(**rows: dict[str, Any]) -> None:
    """Print a table of the headline scores, one row per network."""
    print(f"\n{'':10}" + "".join(f"{name:>8}" for name in HEADLINE))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{row[key]:8.1f}" for key in HEADLINE))


def print_title(text: str) -> None:
    """Print the title of a part of the command."""
    print(f"\n== {text}", flush=True)
