"""Damaged data in whole runs: all ranks record it or all stop, with the same list."""

import dataclasses
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import order_of
from pipeline.run.eventlog import EVENTS
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.track import METRICS
from pipeline.settings import CheckpointSettings
from shards.jsonl import rows
from tests import distributed
from tests.damage import flip
from tests.pipeline.runs import attempt, interrupted, smallest

pytestmark = pytest.mark.slow

BAD = {1, 4}
STEPS, GLOBAL = 4, 8


def without_answer(settings, folder: Path) -> str:
    """Train while the storage of the second rank fails from step 2 on."""
    share = BatchSplit(GLOBAL, settings.batch.micro, 2, dist.get_rank())
    read, calls = Store.read, []

    def sometimes(self, sample):
        calls.append(sample)
        if dist.get_rank() == 1 and len(calls) > share.global_batch // 2:
            raise ConnectionError("http://server/000000.tar: no answer")
        return read(self, sample)

    with mock.patch.object(Store, "read", sometimes):
        return attempt(settings, folder)


def all_runs(sets: Path, root: Path) -> dict:
    plain = smallest(sets)
    world = dist.get_world_size()
    outcomes = {f"{world}": attempt(plain, root / f"{world}")}
    if world == 1:
        outcomes["interrupted"] = interrupted(
            dataclasses.replace(plain, checkpoint=CheckpointSettings(every_steps=2, keep=3)),
            root / "interrupted",
        )
    else:
        one = dataclasses.replace(plain, data=dataclasses.replace(plain.data, max_damaged=1))
        outcomes["limit"] = attempt(one, root / "limit")
        outcomes["no answer"] = without_answer(plain, root / "no answer")
        for shard in (sets / "train").glob("*.tar"):
            shard.write_bytes(b"")
        outcomes["all"] = attempt(plain, root / "all")
    return outcomes


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory):
    """Return the folder of the runs, their outcomes on every rank, and the intact set."""
    root = tmp_path_factory.mktemp("quarantine")
    sets = Path(shutil.copytree(photographs, root / "sets"))
    store = Store(sets / "train")
    for sample in BAD:
        flip(sets / "train" / store.shard_of(sample), int(store.index.offset[sample]) + 700, 1)
    alone = distributed.run(all_runs, 1, sets, root, timeout_s=300)
    pair = distributed.run(all_runs, 2, sets, root, timeout_s=300)
    return root, alone[0], pair, store


def listed(folder: Path) -> list[dict]:
    return rows(folder / QUARANTINE)


def test_the_list_is_exact_and_the_run_goes_on(runs):
    root, alone, _, store = runs
    assert alone["1"] == "done"
    order = order_of([store], smallest(root / "sets").data, 3)
    expected = []
    for position in range(STEPS * GLOBAL):
        sample, tries = order.at(position).sample, 0
        while sample in BAD:
            tries += 1
            expected.append((position // GLOBAL + 1, position, store.index.key[sample]))
            sample = order.substitute(position, tries).sample
    found = listed(root / "1")
    assert [(row["step"], row["position"], row["key"]) for row in found] == expected
    assert {row["key"] for row in found} == {store.index.key[sample] for sample in BAD}
    assert all(row["substitute"] not in {store.index.key[n] for n in BAD} for row in found)
    counted = [row["damaged_samples"] for row in rows(root / "1" / METRICS) if "loss" in row]
    assert counted == [
        len({key for step, _, key in expected if step <= now}) for now in range(1, STEPS + 1)
    ]
    assert any(event["event"] == "quarantined" for event in rows(root / "1" / EVENTS))


def test_two_ranks_list_the_same_and_train_the_same(runs):
    root, _, pair, _ = runs
    assert [outcomes["2"] for outcomes in pair] == ["done", "done"]
    assert listed(root / "2") == listed(root / "1")

    def losses(name):
        return {row["step"]: row["loss"] for row in rows(root / name / METRICS) if "loss" in row}

    assert losses("2") == pytest.approx(losses("1"), rel=1e-4)


def test_a_resumed_run_lists_nothing_twice(runs):
    root, alone, *_ = runs
    assert alone["interrupted"] == ["Killed: ", "done"]
    assert listed(root / "interrupted") == listed(root / "1")


def test_past_the_limit_every_rank_stops(runs):
    root, _, pair, _ = runs
    assert len({outcomes["limit"] for outcomes in pair}) == 1
    path = root / "limit" / QUARANTINE
    what = "2 samples are damaged, data.max_damaged=1 (the last: "
    assert pair[0]["limit"].startswith(f"DataError: {path}: {what}")


def test_what_fails_on_one_rank_stops_both(runs):
    _, _, (first, second), _ = runs
    assert second["no answer"] == "ConnectionError: http://server/000000.tar: no answer"
    assert first["no answer"] == second["no answer"]


def test_nothing_but_damage_stops_both_ranks(runs):
    _, _, pair, _ = runs
    for outcomes in pair:
        assert outcomes["all"].startswith("DataError: ")
        assert "is damaged" in outcomes["all"]
        assert "16 substitutes are damaged, too" in outcomes["all"]
