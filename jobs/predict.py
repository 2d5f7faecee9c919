"""`predict`: panoptic overlays and JSON in COCO's formats for images."""

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as rle
from rich.progress import track

from jobs import config as configs
from pipeline.pictures.regions import predicted_regions
from pipeline.pictures.render import overlay
from pipeline.pictures.sheet import write_png
from pipeline.run.restore import load_model
from pipeline.score.inference import Result, infer
from shards.errors import DataError, UsageError
from shards.files import write_json
from shards.format.images import decode_image
from shards.format.taxonomy import Taxonomy

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict(run: str, paths: list[Path], out: Path, checkpoint: str | None = None) -> None:
    """Segment images with a run's checkpoint.

    The files in `out`:

    - NAME.png: the image under its segments
    - panoptic/NAME.png and panoptic.json: COCO's panoptic format
    - instances.json: COCO's results format

    The id of an image is its name without the suffix.

    Args:
        run: A name under runs/, or a path.
        paths: Images, or folders of images.
        out: The folder for the results.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.

    Raises:
        UsageError: A path has no image, two images have the same name, or `out` cannot be written.
        DataError: An image does not decode.
    """
    images = _find_images(paths)
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, taxonomy, step = load_model(config.model, config.task, folder, checkpoint, device)
    try:
        (out / "panoptic").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(reason, where=f"--out {out}", fix="name another folder") from error
    sizes: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    progress = track(images, description=f"predicting with step {step}", transient=True)
    for path in progress:
        image = _read(path)
        result = infer(model, image, config.evaluation, taxonomy.things, device)
        picture = overlay(image, *predicted_regions(result), taxonomy)
        write_png(out / f"{path.stem}.png", picture)
        write_png(out / "panoptic" / f"{path.stem}.png", _id_colors(result.panoptic))
        height, width = image.shape[:2]
        sizes.append({"id": path.stem, "file_name": path.name, "height": height, "width": width})
        panoptic.append(_panoptic_entry(path.stem, result, taxonomy))
        instances += _instance_entries(path.stem, result, taxonomy)
    _write_panoptic(out / "panoptic.json", sizes, panoptic, taxonomy)
    write_json(out / "instances.json", instances)
    found = sum(len(entry["segments_info"]) for entry in panoptic)
    print(f"{len(images)} images, {found} segments: {out}")


def _find_images(paths: list[Path]) -> list[Path]:
    """Return the images among paths and in folders, which must have different names."""
    images = [image for path in paths for image in _images_at(path)]
    names = Counter(image.stem for image in images)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise UsageError(
            f"several images are called {min(repeated)}", fix="predict them one at a time"
        )
    return images


def _images_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError("does not exist", where=path, fix="give images or folders of images")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"holds no image ({suffixes})", where=path, fix="give another folder")
    return found


def _read(path: Path) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), str(path))
    except DataError as error:
        raise DataError("the image does not decode", where=path, fix="leave it out") from error


def _write_panoptic(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], taxonomy: Taxonomy
) -> None:
    categories = [
        {
            "id": category.id,
            "name": category.name,
            "isthing": int(category.isthing),
            "color": list(category.color),
        }
        for category in taxonomy.categories
    ]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def _id_colors(ids: np.ndarray) -> np.ndarray:
    """Return the RGB image of COCO's panoptic format: id = R + 256·G + 65536·B."""
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
        counts = encoded["counts"]
        assert isinstance(counts, bytes), "pycocotools encodes to bytes, though its types say str"
        entries.append({
            "image_id": name,
            "category_id": taxonomy.categories[category].id,
            "score": round(float(score), 4),
            "segmentation": {"size": encoded["size"], "counts": counts.decode()},
            "bbox": rle.toBbox(encoded).tolist(),
        })  # fmt: skip
    return entries
