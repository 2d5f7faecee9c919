"""`inspect`: show a shard set as tables or as a page, or one sample as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jobs.inspect.page import SIGNATURE, page
from jobs.outputs import check_file
from pipeline.pictures.regions import true_regions
from pipeline.pictures.render import enlarge, overlay, shrink, side_by_side
from shards.errors import UsageError
from shards.files import disk_errors, whole_file
from shards.inspect import Overview, ShardSet, find, load, overview, pick
from shards.parallel import processes
from shards.text import printable, say
from shards.verify import shard_sets

TABLE_CLASSES = 25  # rows in a terminal; the page lists all classes
GALLERY_SAMPLES, GALLERY_SIDE = 12, 480  # samples per set on the page, and their long side in px


def inspect(
    out: Path,
    key: str | None,
    html: Path | None,
    picture: Path | None,
    jobs: int | None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Print what shard sets hold and optionally write a page, or draw one sample.

    Args:
        out: The output folder of a build, or the folder of one split.
        key: The sample to draw; None to describe the sets.
        html: The page to write. It is not allowed with `key`.
        picture: The PNG to write with `key`. Defaults to KEY.png in the current folder.
        jobs: Number of processes; None for one per CPU.
        force: Replace a file that `inspect` did not write.

    Returns:
        One summary per set, empty if a sample is drawn.

    Raises:
        UsageError: The arguments contradict each other, a file cannot be written, or it exists and
            `inspect` did not write it.
        DataError: A set is damaged.
    """
    if key is None and picture:
        raise UsageError("is only for drawing one sample", where="--out", fix="add its KEY")
    if key is not None and html:
        raise UsageError("is only for whole sets", where="--html", fix="leave out the KEY")
    sets = shard_sets(out)
    if key is not None:
        picture = picture or Path(f"{Path(key).name}.png")
        check_file(picture, "--out", SIGNATURE.encode(), sets, force=force)
        _write_picture(sets, key, picture)
        return []
    if html:
        check_file(html, "--html", SIGNATURE.encode(), sets, force=force)
    overviews = [overview(folder, processes(jobs)) for folder in sets]
    console = Console()
    for described in overviews:
        say(headline(described))
        console.print(*tables(described), sep="\n")
    if html:
        _write_page(overviews, html)
    return [summary(described) for described in overviews]


def draw_sample(opened: ShardSet, position: int) -> np.ndarray:
    """Return a sample's image beside each of its truths, RGB `uint8 [H, W, 3]`."""
    image, sample = load(opened, position)
    taxonomy = opened.manifest.taxonomy
    pictures = {
        name: overlay(image, ids, regions, taxonomy)
        for name, (ids, regions) in true_regions(sample).items()
    }
    plain = enlarge(image)
    return side_by_side(["image", *pictures], [plain, *pictures.values()])


def draw_thumbnail(opened: ShardSet, position: int) -> np.ndarray:
    """Return a small picture of a sample under its first truth, RGB `uint8 [H, W, 3]`."""
    image, sample = load(opened, position)
    ids, regions = next(iter(true_regions(sample).values()))
    image, ids = shrink(image, ids, GALLERY_SIDE)
    return overlay(image, ids, regions, opened.manifest.taxonomy)


def headline(described: Overview) -> str:
    """Return one line about a set."""
    manifest = described.manifest
    mib = sum(shard.bytes for shard in manifest.shards) / 2**20
    return (
        f"{described.folder}: {manifest.samples:,} images in {len(manifest.shards)} shards, "
        f"{mib:,.1f} MiB; serves {', '.join(manifest.tasks)}; "
        "{:,} small, {:,} medium, {:,} large objects".format(*described.by_size)
    )


def tables(described: Overview) -> tuple[Table, Table]:
    """Return a table of sizes and object counts, and a table of the most frequent classes."""
    return _facts(described), _classes(described)


def summary(described: Overview) -> dict[str, Any]:
    """Return what a set holds as JSON types, with a row per class."""
    manifest, tally = described.manifest, described.tally
    return {
        "folder": str(described.folder),
        "fingerprint": manifest.fingerprint,
        "tasks": list(manifest.tasks),
        "images": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "objects": dict(zip(("small", "medium", "large"), described.by_size, strict=True)),
        "classes": [
            {
                "name": category.name,
                "isthing": bool(category.isthing),
                "images": int(tally.images[k]),
                "segments": int(tally.segments[k]),
                "instances": int(tally.instances[k]),
                "pixel_share": float(described.shares[k]),
            }
            for k, category in enumerate(manifest.taxonomy.categories)
        ],
    }


def _write_picture(sets: list[Path], key: str, path: Path) -> None:
    opened, position = find(sets, key)
    signature = PngInfo()
    signature.add_text("Software", SIGNATURE)
    with disk_errors(path), whole_file(path) as file:
        Image.fromarray(draw_sample(opened, position)).save(file, "PNG", pnginfo=signature)
    say(f"{path}: sample {key} of {opened.folder} with its truth")


def _write_page(overviews: list[Overview], path: Path) -> None:
    galleries = [
        [
            (described.index.key[position], draw_thumbnail(described, position))
            for position in pick(described, GALLERY_SAMPLES)
        ]
        for described in overviews
    ]
    with disk_errors(path), whole_file(path) as file:
        file.write(page(list(zip(overviews, galleries, strict=True))).encode())
    say(f"{path}: open this page in a browser")


def _facts(described: Overview) -> Table:
    columns = (Column(name, justify="right") for name in ("min", "median", "max"))
    table = Table("", *columns, box=SIMPLE)
    for name, values in (
        ("image width, px", described.sizes[:, 0]),
        ("image height, px", described.sizes[:, 1]),
        ("objects per image", described.tally.objects),
        ("object area, px", described.tally.areas),
    ):
        if len(values):
            table.add_row(name, *(f"{f(values):,.0f}" for f in (np.min, np.median, np.max)))
    return table


def _classes(described: Overview) -> Table:
    tally = described.tally
    columns = [
        Column(name, justify="right") for name in ("images", "segments", "instances", "pixels")
    ]
    table = Table("class", "kind", *columns, box=SIMPLE)
    order = np.argsort(-tally.images, kind="stable")
    for k in order[:TABLE_CLASSES]:
        category = described.manifest.taxonomy.categories[k]
        counts = tally.images[k], tally.segments[k], tally.instances[k]
        table.add_row(
            Text(printable(category.name)),
            "thing" if category.isthing else "stuff",
            *(f"{count:,}" for count in counts),
            f"{described.shares[k]:.2%}",
        )
    absent = f"{int((tally.images == 0).sum())} of {len(order)} classes do not occur"
    omitted = len(order) - TABLE_CLASSES
    table.caption = (
        f"{omitted} more classes on the page (--html); {absent}" if omitted > 0 else absent
    )
    return table
