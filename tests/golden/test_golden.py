"""Training gives the losses that were recorded in the files of this folder.

In float64 the losses of `tiny` agree to 2e-16 over all 20 steps, whether torch uses AVX-512 or no
vector instructions, one thread or two, the kernels or `M2F_KERNELS=reference`. The tolerance of
1e-12 therefore holds on every CPU, and only a change of the computation exceeds it. `r50` is not
trained in float64, which would take minutes.

In float32 a change of the last bit grows, because Adam divides small gradients by their size and
because points and masks are chosen by comparison. Between the same variants the losses of `tiny`
differ by 1e-7 over ten steps and by 1e-4 over 20. Those of `r50`, measured on one thread only,
differ by 1e-6 over three steps and by 2e-3 over 20. Tolerances are five to ten times these.
"""

import json

import pytest

from tests.golden.make import path
from tests.golden.recipe import DTYPES, STEPS, train

# For each case: steps of the first part, and the relative tolerances in it and after it.
TOLERANCES = {
    ("tiny", "float32"): (10, 2e-6, 1e-3),
    ("tiny", "float64"): (STEPS, 1e-12, 0),
    ("r50", "float32"): (3, 1e-5, 1e-2),
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key[0] == "r50" else []) for key in TOLERANCES],
)
def test_losses_are_the_recorded_ones(name: str, precision: str) -> None:
    recorded = json.loads(path(name).read_text())["losses"][precision]
    losses = train(name, DTYPES[precision])
    steps, early, late = TOLERANCES[name, precision]
    assert len(losses) == len(recorded) == STEPS
    assert losses[:steps] == pytest.approx(recorded[:steps], rel=early, abs=0)
    assert losses[steps:] == pytest.approx(recorded[steps:], rel=late, abs=0)
