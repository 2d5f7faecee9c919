"""`predict`: images in; panoptic overlays and COCO-format JSON out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as rle
from rich.progress import track

from jobs import config as configs
from pipeline.data.stages import read_image
from pipeline.pictures.regions import predicted_regions
from pipeline.pictures.render import overlay
from pipeline.pictures.sheet import write_png
from pipeline.run.folder import load_model
from pipeline.score.inference import Result, infer
from shards.errors import DataError, UsageError
from shards.files import write_json
from shards.format.taxonomy import Taxonomy

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict(run: str, paths: list[Path], out: Path, checkpoint: str | None = None) -> None:
    """Segment images (or folders of them) with a run's checkpoint.

    Writes to `out`: NAME.png (overlay), panoptic/NAME.png (COCO's id colors), panoptic.json and
    instances.json, both in COCO's formats with the image's name as its id.
    Raises UsageError for paths that are no images and for an `out` that cannot be written.
    """
    images = list(_images(paths))
    names = [path.stem for path in images]
    if twins := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"several images are called {min(twins)}; predict them one at a time")
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, taxonomy, step = load_model(config, folder, checkpoint, device)
    try:
        (out / "panoptic").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    for path in track(images, description=f"predicting with step {step}", transient=True):
        image = _read(path)
        result = infer(model, image, config.evaluation, taxonomy.things, device)
        picture = overlay(image, *predicted_regions(result), taxonomy)
        write_png(out / f"{path.stem}.png", picture)
        write_png(out / "panoptic" / f"{path.stem}.png", _id_colors(result.panoptic))
        height, width = image.shape[:2]
        sizes.append({"id": path.stem, "file_name": path.name, "height": height, "width": width})
        panoptic.append(_panoptic_entry(path.stem, result, taxonomy))
        instances += _instance_entries(path.stem, result, taxonomy)
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
        for c in taxonomy.categories
    ]
    write_json(
        out / "panoptic.json",
        {"images": sizes, "annotations": panoptic, "categories": categories},
    )
    write_json(out / "instances.json", instances)
    found = sum(len(entry["segments_info"]) for entry in panoptic)
    print(f"{len(images)} images, {found} segments: {out}")


def _images(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UsageError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"{path} does not exist; give images or folders of images")


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path.read_bytes(), str(path))
    except DataError as error:
        raise DataError(f"{path} is no image that can be read; leave it out") from error


def _id_colors(ids: np.ndarray) -> np.ndarray:
    """COCO's panoptic PNG: id = R + 256·G + 65536·B."""
    return np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8)


def _panoptic_entry(name: str, result: Result, taxonomy: Taxonomy) -> dict[str, Any]:
    infos = []
    for segment in result.segments:
        mask = (result.panoptic == segment["id"]).astype(np.uint8)
        infos.append({
            "id": segment["id"],
            "category_id": taxonomy.categories[segment["category"]].id,
            "isthing": int(segment["isthing"]),
            "score": round(segment["score"], 4),
            "area": int(mask.sum()),
            "bbox": list(cv2.boundingRect(mask)),
            "iscrowd": 0,
        })  # fmt: skip
    return {"image_id": name, "file_name": f"{name}.png", "segments_info": infos}


def _instance_entries(name: str, result: Result, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    entries = []
    for score, category, mask in zip(result.scores, result.categories, result.masks, strict=True):
        encoded = rle.encode(np.asfortranarray(mask, np.uint8))
        entries.append({
            "image_id": name,
            "category_id": taxonomy.categories[category].id,
            "score": round(float(score), 4),
            "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            "bbox": rle.toBbox(encoded).tolist(),
        })  # fmt: skip
    return entries
