"""A failure on one rank ends both ranks with the same error, and neither hangs."""

import dataclasses
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from model.mask2former import Mask2Former
from pipeline.data.store import Store
from pipeline.distributed import call_on_all_ranks, is_lost_peer, raise_on_all_ranks
from pipeline.run.journal import Journal
from pipeline.score.evaluate import evaluate
from shards.errors import DataError, LoaderError, UsageError
from tests import distributed
from tests.damage import flip
from tests.pipeline.data.test_stages import HERE
from tests.pipeline.runs import MODEL, attempt, smallest

ERRORS = [
    DataError("000000.tar is damaged"),
    UsageError("data.stages=a:b: no"),
    LoaderError("a loader process died"),
    ConnectionError("http://server: no answer"),
    KeyError("anything else"),
]


def outcome(do) -> str:
    """Return the error of `do` as text, "done" without one."""
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def fail_alone(error: Exception) -> None:
    if dist.get_rank() == 1:
        raise error


def scored(sets: Path) -> str:
    """Return the outcome of an evaluation of two images, the second of which is damaged."""
    settings = smallest(sets).evaluation
    store = Store(sets / "val")
    model = Mask2Former(MODEL, len(store.manifest.taxonomy))
    two = dataclasses.replace(settings, images=2)
    return outcome(lambda: evaluate(model, store, two, torch.device("cpu")))


def all_cases(sets: Path, root: Path) -> dict:
    """Return the outcome of each case on this rank."""
    outcomes: dict = {"nothing": outcome(lambda: raise_on_all_ranks(None))}
    alone = [partial(fail_alone, error) for error in ERRORS]
    outcomes["kinds"] = [outcome(partial(call_on_all_ranks, fails)) for fails in alone]
    outcomes["value"] = call_on_all_ranks(dist.get_rank)
    outcomes["evaluation"] = scored(sets)
    plain = smallest(sets)
    with mock.patch("pipeline.step.assemble.Engine"), mock.patch.object(Journal, "save"):
        for stage in ("broken_on_one_rank", "die_on_one_rank"):
            data = dataclasses.replace(plain.data, stages=[f"{HERE}:{stage}"], loader_workers=1)
            outcomes[stage] = attempt(dataclasses.replace(plain, data=data), root / stage)
        if dist.get_rank() == 1:
            plain.data.train = [str(root / "not on this node")]
        outcomes["no set"] = attempt(plain, root / "no set")
    return outcomes


@pytest.fixture(scope="module")
def pair(photographs, tmp_path_factory):
    """Return the outcomes of both ranks, and the damaged tar and sample."""
    root = tmp_path_factory.mktemp("ranks")
    sets = Path(shutil.copytree(photographs, root / "sets"))
    store = Store(sets / "val")
    tar = sets / "val" / store.shard_of(1)
    flip(tar, int(store.index.offset[1]) + 700, 1)
    return distributed.run(all_cases, 2, sets, root), tar, store.index.key[1]


def test_an_error_is_of_one_kind_on_all_ranks(pair):
    (first, second), *_ = pair
    assert second["kinds"] == [f"{type(error).__name__}: {error}" for error in ERRORS]
    assert first["kinds"] == second["kinds"]
    assert [outcomes["nothing"] for outcomes in (first, second)] == ["done", "done"]
    assert [outcomes["value"] for outcomes in (first, second)] == [0, 1]


def test_a_damaged_image_ends_the_evaluation_of_both(pair):
    """Only the second rank reads it."""
    (first, second), tar, key = pair
    assert first["evaluation"] == second["evaluation"]
    assert first["evaluation"].startswith(f"DataError: {tar}: sample {key} is damaged")


def test_a_stage_that_fails_ends_the_training_of_both(pair):
    (first, second), *_ = pair
    for outcomes in (first, second):
        assert outcomes["broken_on_one_rank"].startswith("UsageError: ")
        assert f"data.stages={HERE}:broken_on_one_rank: sample" in outcomes["broken_on_one_rank"]
        assert "KeyError: 'depth'" in outcomes["broken_on_one_rank"]


def test_a_loader_process_that_dies_ends_the_training_of_both(pair):
    (first, second), *_ = pair
    assert first["die_on_one_rank"] == second["die_on_one_rank"]
    assert first["die_on_one_rank"].startswith("LoaderError: a loader process was killed (SIGKILL)")


def test_a_set_that_one_node_lacks_ends_both_at_the_start(pair):
    (first, second), *_ = pair
    assert first["no set"] == second["no set"]
    assert "not on this node: not a shard set" in first["no set"]


GONE = """
import os, sys
import torch, torch.distributed as dist
from pipeline.distributed import is_lost_peer
store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
dist.all_reduce(torch.zeros(1))
if rank == 1:
    os._exit(9)
try:
    while True:
        dist.all_reduce(torch.zeros(1))
except Exception as error:
    print(is_lost_peer(error))
"""


@pytest.mark.slow
def test_a_rank_knows_that_another_is_gone(tmp_path):
    """Otherwise a kill from outside would count as an error of the run."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GONE, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    out, _ = ranks[0].communicate(timeout=300)
    ranks[1].communicate()
    assert out == "True\n"


def test_an_error_of_its_own_is_not_that_of_a_peer():
    own = (
        RuntimeError("CUDA error: out of memory"),
        dist.DistBackendError("NCCL error, unhandled cuda error: ncclUnhandledCudaError"),
    )
    assert not any(map(is_lost_peer, (*ERRORS, *own, MemoryError())))
    text = "NCCL error: ncclRemoteError: a network error or a remote process exiting prematurely"
    assert is_lost_peer(dist.DistBackendError(text))
