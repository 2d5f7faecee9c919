"""The `replay` command: its sheet, its lines, and the steps and ranks that it rejects."""

import json

import cv2
import pytest

from pipeline.data.store import Store
from pipeline.run.eventlog import EVENTS
from tests.jobs import small
from tests.jobs.small import GLOBAL_BATCH, call, complaint


@pytest.fixture
def run(tmp_path, photographs):
    """Return a run of two ranks that rewound from step 6 to 4, and of four ranks from step 9."""
    folder = small.untrained(tmp_path, photographs)
    history = [{"event": "start", "step": 0, "position": 0, "world_size": 2},
               *({"event": event, "step": 4, "position": position, "world_size": 2, "name": ""}
                 for event, position in (("checkpoint", 4 * GLOBAL_BATCH),
                                         ("start", 4 * GLOBAL_BATCH),
                                         ("checkpoint", 6 * GLOBAL_BATCH))),
               {"event": "start", "step": 8, "position": 10 * GLOBAL_BATCH, "world_size": 4},
              ]  # fmt: skip
    (folder / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in history))
    return folder


def lines(outcome) -> list[list[str]]:
    assert outcome.code == 0, outcome.err
    return [line.split() for line in outcome.out.splitlines() if line[:4].strip().isdigit()]


def test_the_positions_of_a_step_are_those_that_a_rewind_has_left(run, tmp_path):
    for step, first in {4: 3, 5: 6, 9: 10}.items():
        found = lines(call(tmp_path, "replay", str(run), "--step", str(step)))
        positions = range(first * GLOBAL_BATCH, (first + 1) * GLOBAL_BATCH)
        assert sorted(int(words[1]) for words in found) == list(positions)


def test_a_step_is_drawn_sample_by_sample(run, tmp_path, photographs):
    found = lines(call(tmp_path, "replay", str(run), "--step", "2"))
    positions = [int(words[1]) for words in found]
    assert sorted(positions) == list(range(GLOBAL_BATCH, 2 * GLOBAL_BATCH))
    assert {words[0] for words in found} == {"0", "1"}
    assert {words[3] for words in found} <= set(Store(photographs / "train").index.key)
    sheet = cv2.imread(str(run / "pictures" / "replay-step-000000002.png"))
    assert sheet.shape[0] > 2 * 256
    assert sheet.shape[1] > 8 * 256


def test_the_samples_of_a_rank_depend_on_the_workers_of_the_step(run, tmp_path):
    for step, world in ((8, 2), (9, 4)):
        whole = lines(call(tmp_path, "replay", str(run), "--step", str(step)))
        assert len({words[0] for words in whole}) == world
        part = lines(call(tmp_path, "replay", str(run), "--step", str(step), "--rank", "1"))
        assert part == [words for words in whole if words[0] == "1"]
        assert (run / "pictures" / f"replay-step-{step:09d}-rank-1.png").is_file()


def test_steps_and_ranks_outside_the_run_are_rejected(run, tmp_path):
    for words, text in {
        ("--step", "17"): "--step 17: the run has steps 1 to 16",
        ("--step", "8", "--rank", "2"): "--rank 2: step 8 has ranks 0 to 1",
    }.items():
        outcome = call(tmp_path, "replay", str(run), *words)
        assert outcome.code == 2
        assert text in complaint(outcome)


def test_changed_shards_are_rejected(run, tmp_path):
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["train"] = "of other shards"
    (run / "environment.json").write_text(json.dumps(environment))
    outcome = call(tmp_path, "replay", str(run), "--step", "1")
    assert outcome.code == 2
    assert "the shards are not those of the run" in complaint(outcome)
