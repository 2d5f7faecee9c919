"""The windows of exported programs beside those of transformers."""

import pytest
import torch

from model.backbone import Backbone
from model.windows import exact_windows

NETWORKS = {
    "swin": {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 2]},
    "swinv2": {
        "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 2], "window_size": 4
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(224, 224), (64, 96), (32, 256)])
@torch.no_grad()
def test_maps_are_equal_with_and_without_padding(name, size):
    torch.manual_seed(0)
    backbone = Backbone(name, NETWORKS[name]).eval()
    images = torch.randn(2, 3, *size)
    wanted = backbone(images)
    with exact_windows():
        found = backbone(images)
    assert all(torch.equal(found[stride], wanted[stride]) for stride in wanted)
    again = backbone(images)
    assert all(torch.equal(again[stride], wanted[stride]) for stride in wanted)
