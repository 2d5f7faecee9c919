"""Benchmarks: their names, their rows, and the bound of the overfit run."""

import datetime
import importlib
import json

import numpy as np
import pytest
import torch

from jobs import bench
from jobs.bench import build as builds
from jobs.bench.overfit import IMAGES, RECIPE, SAMPLE, stride_bound
from jobs.config import load
from pipeline.data.store import Store
from shards.build.build import build
from shards.errors import UsageError
from tests.jobs import small


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("overfit")
    build("coco", SAMPLE, out, splits=["train"], limit=IMAGES, jobs=1, report=lambda _: None)
    return Store(out / "train")


def test_bound_of_stride_4_falls_with_the_size(photographs):
    """Exact masks lose a few points at stride 4 of 320 pixels, and many more at 64."""
    bounds = [stride_bound(photographs, crop) for crop in (64, 320)]
    assert 95 < bounds[1] < 99
    assert bounds[0] < bounds[1] - 10


def test_recipe_is_what_the_benchmark_says(photographs):
    sets = [f"data.{name}={photographs.folder}" for name in ("train", "val")]
    config = load(str(RECIPE), sets)
    assert (config.data.limit, config.evaluation.images, config.batch.size) == (IMAGES,) * 3
    assert config.data.augment == "none"
    segment = config.evaluation.segment
    assert (segment.object_threshold, segment.overlap_threshold) == (0.8, 0.8)


def test_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match=r"'overfitt'; known: .*overfit"):
        bench.bench("overfitt")


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_name_is_a_module_with_rows(name):
    assert callable(importlib.import_module(f"jobs.bench.{name}").rows)


def test_json_holds_the_rows_that_are_printed_and_the_machine(monkeypatch, tmp_path):
    row = bench.row("overfit.pq", "PQ", 91.237, better="higher", target=">= 90")
    monkeypatch.setattr("jobs.bench.overfit.rows", lambda: [row])
    outcome = small.call(tmp_path, "bench", "overfit", "--json")
    result = json.loads(outcome.out)
    assert (result["benchmark"], result["rows"]) == ("overfit", [row])
    names = "name unit ours peer peer_name ratio better target"
    assert set(row) == set(names.split())
    assert np.isclose(row["ours"], 91.24)
    assert "91.24" in outcome.err
    assert set(result["machine"]) == {"cpu", "cores", "memory_gib", "gpu"}
    assert result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result["date"] == datetime.datetime.now(datetime.UTC).date().isoformat()


def test_row_beside_a_peer_has_the_ratio():
    row = bench.row(
        "step.time", "s", 0.12345, peer=0.5, peer_name="them", better="lower", target="<= 0.6"
    )
    assert (row["ours"], row["peer"], row["ratio"]) == (0.123, 0.5, 0.247)


def test_works_take_turns_and_the_first_does_not_count():
    turns = []
    works = {name: lambda name=name: turns.append(name) for name in ("ours", "peer")}
    seconds = bench.alternate(works, times=2)
    assert turns == ["ours", "peer"] * 3
    assert set(seconds) == {"ours", "peer"}
    assert all(0 <= taken < 1 for taken in seconds.values())


def test_the_build_is_measured_on_repeated_photographs(monkeypatch):
    monkeypatch.setattr(builds, "IMAGES", 12)  # of ten
    monkeypatch.setattr(builds, "PHOTOS", 30)
    monkeypatch.setattr(builds, "KINDS", {"instances": 70, "panoptic": 30})
    measured = {row["name"]: row for row in builds.rows()}
    assert list(measured) == [
        *("build.rate", "build.time", "build.plan_time.118k", "build.plan_memory.118k")
    ]
    assert measured["build.time"]["ratio"] > 1
    assert measured["build.plan_memory.118k"]["ours"] > 20
