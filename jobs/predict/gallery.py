"""The gallery of `predict`: a page of thumbnails that shows names and scores, and filters."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from jobs.pages import render_with_script
from jobs.predict.inputs import THUMBNAILS
from jobs.segmenter import Segmented
from pipeline.pictures.render import shrink
from shards.files import whole_file
from shards.format.taxonomy import Taxonomy

THUMBNAIL_SIDE = 320  # pixels of the longer side
SHOWN = 10_000  # images of the page; more take browsers minutes
_DIGITS = 3  # of a score
_TOLERANCE = 0.8  # pixels of a thumbnail by which an outline may differ from its mask

Outline = tuple[int, float | None, str]
"""The class and the score of a region, and its outline as an SVG path."""


def outlines(segmented: Segmented) -> dict[str, Any]:
    """Return the outlines of the regions of an image, the largest first.

    Returns:
        `size`, the width and height to which they belong, and `regions`, each an `Outline`.
    """
    _, ids = shrink(segmented.image, segmented.regions.ids, THUMBNAIL_SIDE)
    scores = {segment["id"]: segment["score"] for segment in segmented.result.segments}
    scored = segmented.task != "semantic"
    areas = np.bincount(ids.ravel(), minlength=1 + max([0, *scores, len(segmented.taxonomy)]))
    regions: list[Outline] = []
    for region in sorted(segmented.regions.regions, key=lambda region: -areas[region.id]):
        score = round(scores[region.id], _DIGITS) if scored else None
        regions.append((region.category, score, _path(ids == region.id)))
    return {"size": [ids.shape[1], ids.shape[0]], "regions": regions}


def write_gallery(
    path: Path, records: list[dict[str, Any]], taxonomy: Taxonomy, summary: dict[str, Any]
) -> None:
    """Write the page.

    Args:
        path: The page, beside the pictures.
        records: What is known about each image; see `jobs.predict.results`.
        taxonomy: The classes.
        summary: What `summary.json` holds.
    """
    images = [
        {
            "name": _shown(record["image"]["file_name"]),
            "picture": _link(f"{record['image']['id']}.png"),
            "thumbnail": _link(f"{THUMBNAILS}/{record['image']['id']}.jpg"),
            **record["outlines"],
        }
        for record in records[:SHOWN]
    ]
    data = {
        "images": images,
        "classes": [[category.name, category.color] for category in taxonomy.categories],
    }
    left_out = [{key: _shown(text) for key, text in row.items()} for row in summary["left_out"]]
    page = render_with_script(
        "predict/gallery.html",
        "predict/gallery.js",
        data,
        run=_shown(summary["run"]),
        step=summary["step"],
        count=len(records),
        shown=len(images),
        left_out=left_out,
    )
    with whole_file(path) as file:
        file.write(page.encode())


def _path(mask: np.ndarray) -> str:
    """Return the outline of a mask, `bool [H, W]`, with its holes, as an SVG path."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(0, 0)
    )
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, _TOLERANCE, closed=True)[:, 0].tolist()
        parts.append("M" + "L".join(f"{x} {y}" for x, y in points) + "Z")
    return "".join(parts)


def _link(name: str) -> str:
    """Return the relative URL of a file beside the page."""
    return "./" + quote(os.fsencode(name))


def _shown(text: str) -> str:
    """Return text whose bytes that are not UTF-8 are visible."""
    return os.fsencode(text).decode(errors="backslashreplace")
