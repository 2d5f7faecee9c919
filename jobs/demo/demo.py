"""`demo`: the whole main path, small: painted data, shards, training, scores, pictures."""

import shutil
import time
from pathlib import Path
from typing import Any

from jobs.build import build
from jobs.demo.shapes import generate
from jobs.evaluate import evaluate
from jobs.train import train
from pipeline.run.folder import PICTURES, all_scores
from pipeline.score.evaluate import HEADLINE
from shards.errors import UsageError

TRAIN_IMAGES, VAL_IMAGES, SIDE, SEED = 2000, 100, 96, 0


def demo(out: Path) -> dict[str, Any]:
    """Run every step in `out`; a step that is done already is not done again.

    Returns the scores of the trained net on the held-out images.
    """
    out = out.absolute()
    raw, shards = out / "raw", out / "shards"
    started = time.perf_counter()
    _title("1/4 paint a data set in COCO's raw layout (panoptic and instances)")
    _paint(raw)
    _title("2/4 build shards, as for COCO: ./launch.sh build coco")
    build("coco", raw, shards)
    _title("3/4 train: ./launch.sh train tiny, 2 Ray workers with DeepSpeed ZeRO-1")
    folder = train(
        "tiny",
        [
            f"data.train={shards / 'train'}",
            f"data.val={shards / 'val'}",
            "evaluation.at_start=true",
        ],
        runs=out / "runs",
    )
    _title("4/4 score the held-out images: ./launch.sh evaluate")
    scores = evaluate(str(folder))
    untrained = all_scores(folder)[0]
    print(f"\n{'':10}" + "".join(f"{name:>8}" for name in HEADLINE))
    for name, row in (("untrained", untrained), ("trained", scores)):
        print(f"{name:10}" + "".join(f"{row[key]:8.1f}" for key in HEADLINE))
    print(f"""
done in {time.perf_counter() - started:.0f} s; everything is in {out}
  pictures, truth beside prediction   {folder / PICTURES}
  scores, metrics, events, config     {folder}
  raw data and shards                 {raw}, {shards}

next
  ./launch.sh predict {folder} {raw / "val2017"} --out {out / "predictions"}
  ./launch.sh build coco --root COCO --out SHARDS
  ./launch.sh train coco_panoptic_r50 data.train=SHARDS/train data.val=SHARDS/val""")
    return scores


def _paint(raw: Path) -> None:
    """The data set, whole: a half-painted one is painted again."""
    mark = raw / "painted"
    recipe = f"{TRAIN_IMAGES} {VAL_IMAGES} {SIDE} {SEED}"
    if mark.exists() and mark.read_text() == recipe:
        print(f"already painted: {raw}")
        return
    try:
        shutil.rmtree(raw, ignore_errors=True)
        generate(raw, TRAIN_IMAGES, VAL_IMAGES, SIDE, SEED)
        mark.write_text(recipe)
    except OSError as error:
        raise UsageError(f"{raw}: {error.strerror}; give another folder with --out") from error
    print(f"{TRAIN_IMAGES} + {VAL_IMAGES} images of {SIDE} x {SIDE} pixels: {raw}")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)
