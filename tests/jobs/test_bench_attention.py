"""The attention benchmark compares equal work."""

import torch

from jobs.bench.attention import case, peer, step
from model.deformable_self_attention import deformable_self_attention


def test_ours_and_the_peer_do_the_same_work():
    shapes, inputs = case(64, 1, torch.device("cpu"))
    assert [tuple(x.shape) for x in inputs] == [(1, 84, 8, 32), (1, 84, 288)]
    gradients = (step(f, shapes, inputs) for f in (deformable_self_attention, peer))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
