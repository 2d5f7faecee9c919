"""The page of `inspect`: one HTML file with charts and pictures, no links, and no script."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jobs.inspect import charts
from jobs.inspect.charts import Chart
from jobs.pages import data_uri, render
from shards.inspect import Overview

Gallery = Sequence[tuple[str, np.ndarray]]
"""Keys of samples and their pictures, uint8 RGB `[H, W, 3]`."""

SIGNATURE = "mask2former inspect"  # in every file that the command writes
BAR_WIDTH = 180  # px, of the bar in the table of classes


class Picture(NamedTuple):
    """A sample in the gallery."""

    key: str
    data_uri: str


class Section(NamedTuple):
    """What the template shows for one shard set."""

    name: str
    about: str
    samples: str
    tiles: dict[str, str]
    charts: list[Chart]
    classes: list[dict[str, Any]]
    pictures: list[Picture]


def page(sets: Sequence[tuple[Overview, Gallery]]) -> str:
    """Return the HTML page about shard sets, each with pictures of some of its samples."""
    sections = [_section(overview, gallery) for overview, gallery in sets]
    values = {"sections": sections, "bar_width": BAR_WIDTH, "signature": SIGNATURE}
    return render("inspect/page.html", **values)


def _section(overview: Overview, gallery: Gallery) -> Section:
    manifest, tally = overview.manifest, overview.tally
    shown = [charts.image_sizes(overview.sizes)]
    if len(tally.areas):
        shown.append(charts.objects_per_image(tally.objects))
        shown.append(charts.object_sizes(tally.areas, overview.by_size))
    return Section(
        name=overview.folder.name,
        about=f"{manifest.source}, taxonomy {manifest.taxonomy.name}; serves "
        f"{', '.join(manifest.tasks)}; fingerprint {manifest.fingerprint[:12]}",
        samples=f"{manifest.samples:,}",
        tiles=_tiles(overview),
        charts=shown,
        classes=_classes(overview),
        pictures=[Picture(key, data_uri(picture)) for key, picture in gallery],
    )


def _tiles(overview: Overview) -> dict[str, str]:
    """Return the figures at the top of a section by their labels."""
    manifest, tally = overview.manifest, overview.tally
    shards = len(manifest.shards)
    mib = sum(shard.bytes for shard in manifest.shards) / 2**20
    return {
        "images": f"{manifest.samples:,}",
        "objects": f"{len(tally.areas):,}",
        "objects per image, mean": f"{tally.objects.mean():.1f}",
        "classes that occur": f"{np.count_nonzero(tally.images)} of {len(manifest.taxonomy)}",
        "images without an object": f"{np.count_nonzero(tally.objects == 0):,}",
        f"MiB in {shards} shard{'s' if shards > 1 else ''}": f"{mib:,.1f}",
    }


def _classes(overview: Overview) -> list[dict[str, Any]]:
    """Return a row per class, the most frequent first, with the width of a bar for its images."""
    tally, categories = overview.tally, overview.manifest.taxonomy.categories
    most = max(int(tally.images.max()), 1)
    return [
        {
            "name": categories[k].name,
            "color": [int(channel) for channel in categories[k].color],
            "kind": "thing" if categories[k].isthing else "stuff",
            "images": f"{tally.images[k]:,}",
            "bar": f"{BAR_WIDTH * tally.images[k] / most:.1f}",
            "segments": f"{tally.segments[k]:,}",
            "instances": f"{tally.instances[k]:,}",
            "share": f"{overview.shares[k]:.2%}",
        }
        for k in np.argsort(-tally.images, kind="stable").tolist()
    ]
