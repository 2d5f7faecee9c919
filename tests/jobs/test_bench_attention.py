"""The attention benchmark compares equal work."""

import torch
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from jobs.bench.attention import case, step
from model.deformable_attention import deformable_attention


def test_ours_and_the_peer_do_the_same_work():
    shapes, inputs = case(64, 1, torch.device("cpu"))
    assert [tuple(x.shape) for x in inputs] == [
        (1, 84, 8, 32),
        (1, 84, 8, 3, 4, 2),
        (1, 84, 8, 3, 4),
    ]
    gradients = (
        step(f, shapes, inputs) for f in (deformable_attention, multi_scale_deformable_attention)
    )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
