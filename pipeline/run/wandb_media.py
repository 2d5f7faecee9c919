"""What W&B shows of an evaluation besides numbers, and references to the files of a run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.score.picture import Picture
from shards.files import is_url

OTHER = 255  # masks of W&B are 8-bit; further classes share the last value


@dataclass(frozen=True)
class Media:
    """The pictures and the rows per class of an evaluation.

    Attributes:
        classes: A row per class; `name` is the name of the class.
        pictures: The pictures, the same images at each evaluation.
    """

    classes: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture] = ()


def values_of(media: Media) -> dict[str, Any]:
    """Return the values to log for the media of an evaluation."""
    import wandb

    values: dict[str, Any] = {}
    if media.classes:
        columns: list[Any] = list(dict.fromkeys(name for row in media.classes for name in row))
        data: list[Any] = [[row.get(name) for name in columns] for row in media.classes]
        values["val/classes"] = wandb.Table(columns=columns, data=data)
    if media.pictures:
        names = [str(row["name"]) for row in media.classes]
        labels = {0: "none", **dict(enumerate(names[: OTHER - 1], start=1))}
        labels |= {OTHER: "other"} if len(names) >= OTHER else {}
        values["val/pictures"] = [_image(picture, labels) for picture in media.pictures]
    return values


def _image(picture: Picture, labels: dict[int, str]) -> Any:
    """Return a picture whose truth and prediction can be shown and hidden in W&B."""
    import wandb

    masks = {
        name: {"mask_data": np.minimum(classes, OTHER).astype(np.uint8), "class_labels": labels}
        for name, classes in (("truth", picture.truth), ("prediction", picture.prediction))
    }
    return wandb.Image(picture.image, caption=picture.name, masks=masks)


def artifact(
    name: str, kind: str, location: Path | str, metadata: Mapping[str, Any] | None = None
) -> Any:
    """Return an artifact that refers to a file, a folder, or a URL, and copies nothing.

    Args:
        name: Name of the artifact; characters that W&B refuses become "-".
        kind: Its type, such as "model".
        location: What it refers to.
        metadata: Facts to show beside it.
    """
    import wandb

    made = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), kind, metadata=dict(metadata or {}))
    url = str(location) if is_url(location) else Path(location).absolute().as_uri()
    made.add_reference(url, name=url.rstrip("/").rpartition("/")[2], checksum=False)
    return made
