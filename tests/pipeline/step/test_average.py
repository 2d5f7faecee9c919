"""The moving average beside its closed form in float64, and its exchange with the weights."""

import contextlib

import pytest
import torch
from torch import nn

from pipeline.step.average import MovingAverage


def network() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
    net[2].requires_grad_(False)
    return net


@pytest.mark.parametrize("decay", [0.3, 0.9998])
def test_the_average_is_its_closed_form(decay):
    """After n updates the weight of the parameters of update i is (1 - d_i)·d_{i+1}···d_n."""
    net, steps = network(), 40
    average = MovingAverage(net, decay)
    history = [[p.detach().double() for p in net.parameters()]]
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.data += torch.randn_like(parameter) / 10
        average.update()
        history.append([p.detach().double() for p in net.parameters()])
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, steps + 1)]
    weights = [1.0, *(1 - d for d in decays)]
    for i, d in enumerate(decays):
        weights[: i + 1] = [weight * d for weight in weights[: i + 1]]
    assert sum(weights) == pytest.approx(1)
    state = average.state()
    assert set(state) == {f"average.{n}" for n, p in net.named_parameters() if p.requires_grad}
    for number, (name, parameter) in enumerate(net.named_parameters()):
        if parameter.requires_grad:
            expected = sum(w * past[number] for w, past in zip(weights, history, strict=True))
            found = state[f"average.{name}"]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_within_the_context_the_network_has_the_averages():
    """They lie in the memory of the parameters, which CUDA graphs read, and leave it to the bit."""
    net = network()
    average = MovingAverage(net, 0.5)
    for parameter in net.parameters():
        parameter.data += 1
    average.update()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    averages = {name: tensor.clone() for name, tensor in average.state().items()}
    addresses = [p.data_ptr() for p in net.parameters()]
    with contextlib.suppress(KeyError), average.applied():
        assert [p.data_ptr() for p in net.parameters()] == addresses
        inside = net.state_dict()
        for name, tensor in before.items():
            assert torch.equal(inside[name], averages.get(f"average.{name}", tensor))
        assert not torch.equal(inside["0.weight"], before["0.weight"])
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(tensor, averages[name]) for name, tensor in average.state().items())
