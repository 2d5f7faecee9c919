"""Measure PQ and AP against torchmetrics, a pass over files, pycocotools, and hotcoco.

The images of PQ have 480x640 pixels and 11 segments, and those of AP 28 detections each. Peers that
read files get the files ready, and what they print is not shown.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from jobs.bench import alternate, peak_mib, row
from jobs.bench.evaluate_instances import SIZE, THINGS, ap_works, detections
from pipeline.score.analysis import analyze
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.record import Record
from shards.errors import UsageError
from shards.format.schema import Segment

SEGMENTS, CLASSES = 11, 133
DETECTIONS = 28  # per image, of AP
IMAGES, SLOW_IMAGES, AP_IMAGES = 40, 1, 200  # torchmetrics takes more than a second per image
MANY_IMAGES, MANY_DETECTIONS = 5000, 100
FLAGS = tuple(c < THINGS for c in range(CLASSES))


class Case(NamedTuple):
    """One image of PQ: maps of ids, and the class of each id."""

    prediction: np.ndarray
    predicted: dict[int, int]
    truth: np.ndarray
    segments: dict[int, Segment]


def rows() -> list[dict]:
    """Return the milliseconds per image of PQ and of AP, and the memory of a large evaluation.

    Raises:
        UsageError: A peer is not installed.
    """
    if not find_spec("torchmetrics") or not find_spec("hotcoco"):
        fix = "./launch.sh setup --dev"
        raise UsageError("torchmetrics and hotcoco are not installed", fix=fix)
    rng = np.random.default_rng(0)
    cases = [case(rng) for _ in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(cases, Path(folder))
        works = {
            "ours": lambda: panoptic_quality(cases),
            "files": lambda: quality_of_files(cases, paths),
            "bincount": lambda: [one_bincount(one) for one in cases],
        }
        ms = {name: 1000 * s / IMAGES for name, s in alternate(works, 9).items()}
    slow = alternate({
        "ours": lambda: panoptic_quality(cases),
        "torchmetrics": lambda: torchmetrics_quality(cases[:SLOW_IMAGES]),
    })  # fmt: skip
    beside = 1000 * slow["ours"] / IMAGES, 1000 * slow["torchmetrics"] / SLOW_IMAGES
    peers = [
        ("torchmetrics", *beside, "<= 0.002x"),
        ("pass over PNG files", ms["ours"], ms["files"], "<= 0.1x"),
        ("one bincount", ms["ours"], ms["bincount"], "<= 2x"),
    ]
    measured = [
        row(
            f"evaluate.pq.{name.rpartition(' ')[2]}",
            "ms/image",
            ours,
            peer=peer,
            peer_name=name,
            better="lower",
            target=target,
        )
        for name, ours, peer, target in peers
    ]
    pictures = [detections(rng, DETECTIONS) for _ in range(AP_IMAGES)]
    seconds = alternate(ap_works(pictures), 5)
    for name in ("pycocotools", "hotcoco"):
        measured.append(
            row(
                f"evaluate.ap.{name}",
                "ms/image",
                1000 * seconds["ours"] / AP_IMAGES,
                peer=1000 * seconds[name] / AP_IMAGES,
                peer_name=name,
                better="lower",
            )
        )
    peak = peak_mib(evaluate_many)
    measured.append(row("evaluate.memory.5000x100", "MiB", peak, better="lower", target="<= 2048"))
    return measured


def labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of smooth regions, 0 for void, and a slightly shifted copy."""
    noise = cv2.resize(
        rng.random((5, 6)).astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_CUBIC
    )
    bounds = np.quantile(noise, np.linspace(0.05, 0.95, SEGMENTS))
    truth = np.digitize(noise, bounds).astype(np.uint16)
    return truth, np.roll(truth, rng.integers(1, 6, 2), (0, 1)).astype(np.int32)


def case(rng: np.random.Generator) -> Case:
    """Return a random image of PQ."""
    truth, prediction = labels(rng)
    classes = dict(enumerate(rng.choice(CLASSES, SEGMENTS, replace=False).tolist(), 1))
    predicted = {id: c if rng.random() < 0.8 else int(rng.integers(CLASSES))
                 for id, c in classes.items()}  # fmt: skip
    segments = {id: Segment(id, c, 0, float((truth == id).sum()), []) for id, c in classes.items()}
    return Case(prediction, predicted, truth, segments)


def panoptic_quality(cases: list[Case]) -> dict[str, Any]:
    """Return our scores."""
    quality = PanopticQuality(FLAGS)
    for n, one in enumerate(cases):
        quality.update(*one, image=str(n))
    return quality.result()


def one_bincount(one: Case) -> np.ndarray:
    """Count the pairs of ids, which is the least that any PQ has to do."""
    codes = one.truth.astype(np.int64) * (SEGMENTS + 1) + one.prediction
    return np.bincount(codes.ravel(), minlength=(SEGMENTS + 1) ** 2)


def write_files(cases: list[Case], folder: Path) -> list[tuple[Path, Path]]:
    """Write the truth and the prediction of each image in COCO's panoptic format."""
    paths = []
    for n, one in enumerate(cases):
        pair = folder / f"{n}.png", folder / f"{n}-predicted.png"
        for path, ids in zip(pair, (one.truth, one.prediction), strict=True):
            wide = ids.astype(np.uint32)
            colors = np.stack([wide & 255, wide >> 8 & 255, wide >> 16], -1).astype(np.uint8)
            Image.fromarray(colors).save(path)
        paths.append(pair)
    return paths


def quality_of_files(cases: list[Case], paths: list[tuple[Path, Path]]) -> float:
    """Return PQ in the manner of panopticapi: decode two PNG files, and loop over pairs of ids."""
    iou, tp, fp, fn = (np.zeros(CLASSES) for _ in range(4))
    for one, pair in zip(cases, paths, strict=True):
        truth, prediction = (_ids(path) for path in pair)
        area = dict(zip(*np.unique(prediction, return_counts=True), strict=True))
        codes, numbers = np.unique(
            truth.astype(np.uint64) * 2**24 + prediction.astype(np.uint64), return_counts=True
        )
        shared = {divmod(int(c), 2**24): n for c, n in zip(codes, numbers, strict=True)}
        found: tuple[set[int], set[int]] = set(), set()
        for (t, p), common in shared.items():
            if not t or not p or one.segments[t].category != one.predicted[p]:
                continue
            union = one.segments[t].area + area[p] - common - shared.get((0, p), 0)
            if common / union > 0.5:
                tp[one.predicted[p]] += 1
                iou[one.predicted[p]] += common / union
                found[0].add(t)
                found[1].add(p)
        for t, segment in one.segments.items():
            fn[segment.category] += t not in found[0]
        for p, category in one.predicted.items():
            fp[category] += p not in found[1] and shared.get((0, p), 0) / area[p] <= 0.5
    occurs = tp + fp + fn > 0
    return float(100 * np.mean(iou[occurs] / (tp + fp / 2 + fn / 2)[occurs]))


def _ids(path: Path) -> np.ndarray:
    colors = np.array(Image.open(path), dtype=np.uint32)
    return colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]


def torchmetrics_quality(cases: list[Case]) -> float:
    """Return PQ by torchmetrics, whose maps have a class and an id per pixel."""
    import torch
    from torchmetrics.detection import PanopticQuality as Theirs

    metric = Theirs(
        set(range(THINGS)), set(range(THINGS, CLASSES)), allow_unknown_preds_category=True
    )
    for one in cases:
        maps = []
        classes = ({t: s.category for t, s in one.segments.items()}, one.predicted)
        for ids, of_id in zip((one.truth, one.prediction), classes, strict=True):
            table = np.array([CLASSES, *of_id.values()])
            maps.append(torch.from_numpy(np.stack([table[ids], ids.astype(int)], -1))[None])
        metric.update(maps[1], maps[0])
    return 100 * float(metric.compute())


def evaluate_many() -> None:
    """Score as many images as COCO's val set has, with 100 detections each."""
    rng = np.random.default_rng(0)
    pool = [detections(rng, MANY_DETECTIONS) for _ in range(16)]
    scores = InstanceScores(THINGS)
    for n in range(MANY_IMAGES):
        picture: dict[str, Any] = {**pool[n % len(pool)], "scores": rng.random(MANY_DETECTIONS)}
        scores.update(f"{n:06d}", **picture)
    scores.result()
    about = {"data": "", "names": [str(c) for c in range(THINGS)], "things": [True] * THINGS}
    record = Record(about, [], instance=[image for _, image in scores.images])
    analyze(record)
    with tempfile.TemporaryDirectory() as folder:
        record.save(Path(folder) / "record.npz")
