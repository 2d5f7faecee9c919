"""The peers of `bench evaluate` compute what we compute."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.bench import evaluate
from jobs.bench.evaluate_instances import ap_works, detections


def test_the_pass_over_files_gives_our_pq(tmp_path):
    rng = np.random.default_rng(0)
    cases = [evaluate.case(rng) for _ in range(3)]
    found = evaluate.quality_of_files(cases, evaluate.write_files(cases, tmp_path))
    assert evaluate.panoptic_quality(cases)["PQ"] == pytest.approx(found, rel=1e-12)
    assert 10 < found < 90


@pytest.mark.slow
def test_torchmetrics_gives_our_pq_if_nothing_is_void():
    one = evaluate.case(np.random.default_rng(1))
    truth, prediction = (np.maximum(ids_map, 1) for ids_map in (one.truth, one.prediction))
    segments = {id: replace(s, area=float((truth == id).sum())) for id, s in one.segments.items()}
    cases = [evaluate.Case(prediction, one.predicted, truth, segments)]
    theirs = evaluate.torchmetrics_quality(cases)
    assert evaluate.panoptic_quality(cases)["PQ"] == pytest.approx(theirs, rel=1e-5)


def test_all_libraries_give_the_same_ap():
    rng = np.random.default_rng(2)
    works = ap_works([detections(rng, 12) for _ in range(6)])
    numbers = {name: [work(), work()][1] for name, work in works.items()}  # as the benchmark does
    np.testing.assert_allclose(numbers["ours"], numbers["pycocotools"], rtol=1e-12)
    np.testing.assert_allclose(numbers["ours"][:3], numbers["hotcoco"][:3], rtol=1e-9)
