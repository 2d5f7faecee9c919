"""ZeRO stages beside plain torch on the whole batch, and the state that they exchange."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.step.engine import Engine, ZeroSettings
from shards.errors import UsageError
from tests import distributed

GLOBAL, MICRO, CLIP, EMA = 8, 2, 5.0, 0.25
STAGES = (0, 1, 2, 3)
DRAW = torch.Generator().manual_seed(1)
X = torch.randn(10 * GLOBAL, 7, generator=DRAW)
Y = torch.randn(10 * GLOBAL, 3, generator=DRAW)


class Toy(nn.Module):
    """A model of odd sizes, so that shards split tensors; one tensor is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Linear(7, 13)
        self.norm = nn.LayerNorm(13)
        self.frozen = nn.Parameter(torch.randn(13), requires_grad=False)
        self.outer = nn.Linear(13, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.outer(torch.relu(self.norm(self.inner(x)) + self.frozen))


def groups(model: Toy) -> list[dict]:
    named = dict(model.named_parameters())
    return [
        {"params": [named["inner.weight"], named["outer.weight"], named["inner.bias"]],
         "lr": 1e-2, "weight_decay": 0.05},
        {"params": [named["norm.weight"], named["norm.bias"], named["outer.bias"]],
         "lr": 3e-2, "weight_decay": 0.0},
    ]  # fmt: skip


def rate(step: int) -> float:
    return 1 / (1 + step)


def loss_of(output: Tensor, truth: Tensor) -> Tensor:
    """Return a micro-batch's part of the global batch's loss."""
    return ((output - truth) ** 2).sum() / GLOBAL


def plain(steps: list[int]) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Return losses, gradient norms, and the end state of torch's AdamW on whole batches.

    The state includes the moving average of the weights, in float64. `steps` are the numbers of the
    batches; the learning rate follows them.
    """
    model = Toy()
    optimizer = torch.optim.AdamW(groups(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    base = [group["lr"] for group in optimizer.param_groups]
    losses, norms = [], []
    averages = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
    for update, t in enumerate(steps, 1):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * rate(t)
        batch = slice(t * GLOBAL, (t + 1) * GLOBAL)
        loss = loss_of(model(X[batch]), Y[batch])
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(trained, CLIP)))
        optimizer.step()
        losses.append(loss.item())
        decay = min(EMA, (1 + update) / (10 + update))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                averages[name] = decay * averages[name] + (1 - decay) * parameter.detach()
    state = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            state[f"{moment}.{name}"] = value
    return losses, norms, state | {f"average.{n}": a.float() for n, a in averages.items()}


def make(stage: int, offload: str | None = None) -> Engine:
    model = Toy()
    return Engine(
        model, groups(model), zero=ZeroSettings(stage, offload), clip=CLIP,
        ema=EMA if stage < 3 else None, micro_steps=GLOBAL // (MICRO * dist.get_world_size()),
        device=torch.device("cpu"),
    )  # fmt: skip


def advance(engine: Engine, steps: range, poison: int | None = None) -> list[tuple]:
    """Return (global loss, gradient norm, applied) of each step; sample `poison` gives NaN."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = []
    for t in steps:
        total = torch.zeros(())
        for micro_step in range(GLOBAL // (MICRO * world)):
            first = t * GLOBAL + (micro_step * world + rank) * MICRO
            part = range(first, first + MICRO)
            loss = loss_of(engine(X[first : first + MICRO]), Y[first : first + MICRO])
            engine.backward(loss * math.nan if poison in part else loss)
            total += loss.detach()
        step = engine.step(rate(t))
        dist.all_reduce(total)
        rows.append((total.item(), step.grad_norm, step.applied))
    return rows


def exercise(elsewhere: dict[int, dict[str, Tensor]]) -> dict:
    """Train, save, continue, load, and continue, on every rank and for every stage.

    `elsewhere` holds states that another world size saved after three steps.
    """
    results = {}
    for stage in STAGES:
        r = results[stage] = {}
        engine = make(stage)
        r["first"] = advance(engine, range(3))
        r["saved"] = engine.state()
        r["second"] = advance(engine, range(3, 6))
        r["end"] = engine.state()
        poisoned = make(stage)
        advance(poisoned, range(2))
        r["before"] = poisoned.state()
        r["skipped"] = advance(poisoned, range(2, 3), poison=2 * GLOBAL + 1)
        r["after"] = poisoned.state()
        r["healed"] = advance(poisoned, range(3, 6))
        again = make(stage)
        if stage == 3:
            hand_over_shards(again)
        else:
            r["refused"] = refusals(again)
            again.load_state(r["saved"], step=3)
        r["resumed"] = advance(again, range(3, 6))
        r["resumed_end"] = again.state()
        if elsewhere and stage < 3:
            again.load_state(elsewhere[stage], step=3)
            r["moved"] = advance(again, range(3, 6))
            r["moved_end"] = again.state()
    return results


def offload() -> dict[int, dict]:
    """Train with and without offloading, on every rank and for every stage from 1 on."""
    results = {}
    for stage in (1, 2, 3):
        r = results[stage] = {}
        plain, offloaded = make(stage), make(stage, "optimizer")
        r["plain"], r["offloaded"] = advance(plain, range(3)), advance(offloaded, range(3))
        r["plain_state"], r["offloaded_state"] = plain.state(), offloaded.state()
        if stage < 3:
            moved = make(stage)
            moved.load_state(r["offloaded_state"], step=3)
            r["moved"], r["stayed"] = (advance(e, range(3, 6)) for e in (moved, offloaded))
        r["skipped"] = advance(offloaded, range(6, 7), poison=6 * GLOBAL + 1)
    return results


def hand_over_shards(engine: Engine) -> None:
    """Load the state of another engine of stage 3 after three steps, by DeepSpeed's files."""
    with tempfile.TemporaryDirectory() as folder:
        box = [folder]
        dist.broadcast_object_list(box)
        saver = make(3)
        advance(saver, range(3))
        saver.save_shards(Path(box[0]))
        engine.load_shards(Path(box[0]))
        dist.barrier()


def refusals(engine: Engine) -> dict[str, str]:
    """Return the errors of `load_state` for wrong states, and whether the engine is unchanged."""
    good = engine.state()
    wrong = {
        "missing": {k: v for k, v in good.items() if k != "exp_avg.inner.weight"},
        "shape": good | {"model.outer.bias": torch.zeros(4)},
        "unknown": good | {"model.other": torch.zeros(1)},
    }
    errors = {}
    for what, state in wrong.items():
        try:
            engine.load_state({k: v + 1 for k, v in state.items()}, step=1)
        except UsageError as error:
            errors[what] = str(error)
    errors["unchanged"] = str(equal(good, engine.state()))
    return errors


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name in one.keys() & other.keys():
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def exercised() -> dict[str, list[dict]]:
    """Return results by rank: one process, two that load its state, one that loads theirs."""
    one = distributed.run(exercise, 1, {})
    states = {stage: one[0][stage]["saved"] for stage in (0, 1, 2)}
    two = distributed.run(exercise, 2, states)
    states = {stage: two[0][stage]["saved"] for stage in (0, 1, 2)}
    return {"one": one, "two": two, "one from two": distributed.run(exercise, 1, states)}


WORLDS = pytest.mark.parametrize("world", ["one", "two"])
ALL_STAGES = pytest.mark.parametrize("stage", STAGES)
OUR_STAGES = pytest.mark.parametrize("stage", [0, 1, 2])


@pytest.mark.slow
@WORLDS
@ALL_STAGES
def test_a_stage_trains_as_plain_torch_does(exercised, world, stage):
    """Losses, norms before clipping, parameters, and moments agree to float32 rounding."""
    losses, norms, _ = plain([0, 1, 2, 3, 4, 5])
    assert min(norms) < CLIP < max(norms)  # some steps are clipped, others are not
    for rank in exercised[world]:
        rows = rank[stage]["first"] + rank[stage]["second"]
        assert [row[0] for row in rows] == pytest.approx(losses, rel=1e-6)
        assert [row[1] for row in rows] == pytest.approx(norms, rel=2e-6)
        assert all(row[2] for row in rows)
        for steps, name in (([0, 1, 2], "saved"), ([0, 1, 2, 3, 4, 5], "end")):
            expected = plain(steps)[2]
            saved = rank[stage][name]
            close(saved, expected, 2e-6)
            assert {k for k in expected if k.startswith("model.")} <= saved.keys()
            if stage < 3:
                others = {k for k in expected if k.startswith(("exp_avg", "average."))}
                assert others == {k for k in saved if k.startswith(("exp_avg", "average."))}


@pytest.mark.slow
@WORLDS
@ALL_STAGES
def test_state_is_whole_and_equal_on_all_ranks(exercised, world, stage):
    first = exercised[world][0][stage]["saved"]
    for rank in exercised[world]:
        assert equal(rank[stage]["saved"], first)
    assert torch.equal(first["model.frozen"], Toy().frozen)
    assert "model.scratch" not in first
    assert first["model.calls"] == 3 * GLOBAL // MICRO // len(exercised[world])


@pytest.mark.slow
@WORLDS
@ALL_STAGES
def test_resuming_from_a_saved_state_is_bit_exact(exercised, world, stage):
    for rank in exercised[world]:
        assert rank[stage]["resumed"] == rank[stage]["second"]
        assert equal(rank[stage]["resumed_end"], rank[stage]["end"])


@pytest.mark.slow
@pytest.mark.parametrize("world", ["two", "one from two"])
@OUR_STAGES
def test_resuming_at_another_world_size_is_the_same_to_rounding(exercised, world, stage):
    for rank in exercised[world]:
        for moved, second in zip(rank[stage]["moved"], rank[stage]["second"], strict=True):
            assert moved == pytest.approx(second, rel=1e-6)
        parameters = {k: v for k, v in rank[stage]["end"].items() if k != "model.calls"}
        close(rank[stage]["moved_end"], parameters, 2e-6)


@pytest.mark.slow
@WORLDS
@ALL_STAGES
def test_a_gradient_that_is_not_finite_changes_nothing(exercised, world, stage):
    """After NaN in one micro-batch of one rank no rank updates, and training continues."""
    losses, norms, _ = plain([0, 1, 3, 4, 5])
    for rank in exercised[world]:
        ((_, norm, applied),) = rank[stage]["skipped"]
        assert not applied
        assert not math.isfinite(norm)
        unchanged = {k: v for k, v in rank[stage]["before"].items() if k != "model.calls"}
        assert equal(unchanged, {k: rank[stage]["after"][k] for k in unchanged})
        healed = rank[stage]["healed"]
        assert [row[0] for row in healed] == pytest.approx(losses[2:], rel=1e-6)
        assert [row[1] for row in healed] == pytest.approx(norms[2:], rel=2e-6)
        assert all(row[2] for row in healed)


@pytest.mark.slow
@OUR_STAGES
def test_a_state_that_does_not_fit_is_refused_by_name(exercised, stage):
    errors = exercised["one"][0][stage]["refused"]
    assert "does not fit the model: exp_avg.inner.weight;" in errors["missing"]
    assert "does not fit the model: model.outer.bias;" in errors["shape"]
    assert "does not fit the model: model.other;" in errors["unknown"]
    assert errors["unchanged"] == "True"


@pytest.mark.slow
def test_offloading_the_optimizer_changes_nothing_but_where_it_is():
    """Stages 1 and 2 are equal to the bit; stage 3 sums the gradient norm in another order."""
    for rank in distributed.run(offload, 2):
        for stage, r in rank.items():
            for offloaded, plain in zip(r["offloaded"], r["plain"], strict=True):
                assert offloaded == pytest.approx(plain, rel=0 if stage < 3 else 1e-6)
            if stage < 3:
                assert equal(r["offloaded_state"], r["plain_state"])
                assert r["moved"] == r["stayed"]  # a run may resume without offloading
            close(r["offloaded_state"], r["plain_state"], 1e-6)
            assert [row[2] for row in r["skipped"]] == [False]
