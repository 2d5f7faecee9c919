"""`inspect`: what is in a shard set, as tables, as a page, or one sample as a picture."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jobs.inspect.page import page
from pipeline.pictures.render import overlay, side_by_side
from shards.errors import UsageError
from shards.files import whole_file
from shards.inspect import Overview, ShardSet, find, layers, load, overview, pick
from shards.parallel import processes
from shards.verify import shard_sets

CLASSES = 25  # in a terminal; the page has all
GALLERY, SIDE = 12, 480  # samples of a set on the page, and their long side


def inspect(
    out: Path, key: str | None, html: Path | None, picture: Path | None, jobs: int | None
) -> None:
    """Say what the sets in `out` hold and write the page `html`, or draw the sample `key`."""
    if picture if key is None else html:
        raise UsageError("--out is for one sample, give its KEY; --html is for sets, without KEY")
    for file in (html, picture):
        if file and not file.absolute().parent.is_dir():
            raise UsageError(f"{file}: there is no folder {file.absolute().parent}; make it first")
    sets = shard_sets(out)
    if key is not None:
        opened, place = find(sets, key)
        picture = picture or Path(f"{Path(key).name}.png")
        with whole_file(picture) as file:
            Image.fromarray(drawn(opened, place)).save(file, "PNG")
        print(f"{picture}: {key} of {opened.folder} with its truth")
        return
    overviews = [overview(folder, processes(jobs)) for folder in sets]
    console = Console()
    for one in overviews:
        print(headline(one))
        console.print(*tables(one), sep="\n")
    if html:
        galleries = [
            [(one.index.key[place], drawn(one, place, gallery=True))
             for place in pick(one, GALLERY)]
            for one in overviews
        ]  # fmt: skip
        with whole_file(html) as file:
            file.write(page(list(zip(overviews, galleries, strict=True))).encode())
        print(f"{html}: open it in a browser")


def drawn(opened: ShardSet, place: int, gallery: bool = False) -> np.ndarray:
    """A sample u8 `[H, W, 3]`: its image beside every truth, or in a gallery a small one below the
    first."""
    image, sample = load(opened, place)
    taxonomy, truths = opened.manifest.taxonomy, layers(sample)
    if gallery:
        ids, entries = next(iter(truths.values()))
        factor = min(SIDE / max(ids.shape), 1)
        size = [max(round(side * factor), 1) for side in ids.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
        return overlay(image, ids, entries, taxonomy)
    pictures = {name: overlay(image, *truth, taxonomy) for name, truth in truths.items()}
    nothing = overlay(image, np.zeros(image.shape[:2], int), [], taxonomy)
    return side_by_side(["image", *pictures], [nothing, *pictures.values()])


def headline(one: Overview) -> str:
    """The set in a line."""
    mib = sum(shard.bytes for shard in one.manifest.shards) / 2**20
    return (
        f"{one.folder}: {one.manifest.samples:,} images in {len(one.manifest.shards)} shards, "
        f"{mib:,.1f} MiB; serves {', '.join(one.manifest.tasks)}; "
        "{:,} small, {:,} medium, {:,} large objects".format(*one.by_size)
    )


def tables(one: Overview) -> tuple[Table, Table]:
    """Sizes and numbers, then the most frequent classes."""
    manifest, counted = one.manifest, one.tally
    numbers = (Column(name, justify="right") for name in ("least", "median", "most"))
    facts = Table("", *numbers, box=SIMPLE)
    for name, values in (
        ("image width, px", one.sizes[:, 0]),
        ("image height, px", one.sizes[:, 1]),
        ("objects an image", counted.objects),
        ("object area, px", counted.areas),
    ):
        if len(values):
            facts.add_row(name, *(f"{f(values):,.0f}" for f in (np.min, np.median, np.max)))
    classes = Table(
        *("class", "kind"),
        *(Column(name, justify="right") for name in ("images", "segments", "instances", "pixels")),
        box=SIMPLE,
    )
    order = np.argsort(-counted.images, kind="stable")
    for k in order[:CLASSES]:
        category = manifest.taxonomy.categories[k]
        numbers = counted.images[k], counted.segments[k], counted.instances[k]
        classes.add_row(
            Text(category.name),
            "thing" if category.isthing else "stuff",
            *(f"{number:,}" for number in numbers),
            f"{one.shares[k]:.2%}",
        )
    never = int((counted.images == 0).sum())
    more = f"{len(order) - CLASSES} more classes on the page (--html); " * (len(order) > CLASSES)
    classes.caption = f"{more}{never} of {len(order)} classes never occur"
    return facts, classes
