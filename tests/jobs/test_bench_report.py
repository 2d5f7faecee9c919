"""`bench report`: tables from kept results, and marks at missed targets."""

import json
from pathlib import Path

import pytest

from jobs.bench import report, row
from shards.errors import DataError, UsageError

VERSIONS = {"torch": "2.13.0"}
CPU = {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 8, "gpu": None}
GPU = {"cpu": "Intel Xeon", "cores": 16, "memory_gib": 128, "gpu": "1 x H100"}


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder with one result of each of two benchmarks, from different machines and days."""
    step = [
        row("step.time", "s", 1.2, peer=2.0, peer_name="transformers", better="lower",
            target="<= 0.5x"),
        row("step.saved", "MiB", 0.8, peer=2.0, peer_name="transformers", better="lower",
            target="<= 0.45x"),
    ]  # fmt: skip
    stream = [
        row("stream.start", "s", 0.3, peer=0.2, peer_name="at 0", better="lower",
            target="<= 0.2 s more"),
        row("stream.memory", "MiB", 85.0, better="lower") | {"note": "of one process"},
    ]  # fmt: skip
    for name, date, machine, rows in (
        ("stream", "2026-11-26", CPU, stream),
        ("step", "2026-11-25", GPU, step),
    ):
        result = {"benchmark": name, "date": date, "machine": machine, "versions": VERSIONS}
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"rows": rows}))
    return tmp_path


def test_tables_name_the_machine_and_the_date_and_mark_misses(results):
    text, missed = report.render(results)
    assert text.splitlines() == [
        *report.HEADING.splitlines(),
        "",
        "## `./launch.sh bench step`",
        "",
        "Intel Xeon, 16 cores, 128 GiB, 1 x H100; 2026-11-25; torch 2.13.0.",
        "",
        "| | ours | peer | ratio | target |",
        "|---|---|---|---|---|",
        "| step.time | 1.2 s | 2.0 transformers | 0.6 | <= 0.5x **missed** |",
        "| step.saved | 0.8 MiB | 2.0 transformers | 0.4 | <= 0.45x |",
        "",
        "## `./launch.sh bench stream`",
        "",
        "AMD EPYC, 2 cores, 8 GiB, no GPU; 2026-11-26; torch 2.13.0.",
        "",
        "| | ours | peer | ratio | target |",
        "|---|---|---|---|---|",
        "| stream.start | 0.3 s | 0.2 at 0 | 1.5 | <= 0.2 s more |",
        "| stream.memory | 85.0 MiB |  |  |  |",
        "",
        "- stream.memory: of one process",
    ]
    assert missed == ["step.time"]


def test_the_latest_result_of_a_machine_comes_first(results):
    newer = json.loads((results / "step.json").read_text()) | {"date": "2026-12-01"}
    (results / "a.json").write_text(json.dumps(newer))
    text, _ = report.render(results)
    assert text.count("## `./launch.sh bench step`") == 1
    assert text.index("2026-12-01") < text.index("2026-11-25")


@pytest.mark.parametrize(
    ("ours", "peer", "target", "met"),
    [
        (15, None, "<= 15", True),
        (15.1, None, "<= 15", False),
        (None, None, "<= 15", False),
        (1e-5, None, "<= 1e-4", True),
        (7, 1, ">= 6x", True),
        (7, None, ">= 6x", False),
        (1400, None, "< 1500", True),
        (0.5, 0.2, "<= 0.2 s more", False),
        (30, 27, "0.7x to 1.3x", True),
        (40, 27, "0.7x to 1.3x", False),
        (40, 27, None, None),
    ],
)
def test_targets_bound_the_value_the_ratio_or_the_difference(ours, peer, target, met):
    measured = row("name", "s", ours, peer=peer, better="lower", target=target)
    assert report.is_met(measured) is met


def test_a_target_of_another_form_is_refused():
    with pytest.raises(ValueError, match="target 'fast' is not a bound"):
        row("name", "s", 1.0, better="lower", target="fast")


def test_missing_and_wrong_results_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no results \(\*\.json\); keep one: .*--json > "):
        report.render(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: not the result of a benchmark"):
        report.render(tmp_path)
    (tmp_path / "a.json").write_text('{"date": "2026-11-26", "rows": []}')
    with pytest.raises(DataError, match=r"a\.json: lacks benchmark, machine, versions"):
        report.render(tmp_path)
