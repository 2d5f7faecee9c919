"""Our weights by their official names, through the official arithmetic, give our predictions."""

import pytest
import torch

from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from model.weights.export import to_detectron2
from model.weights.load import _to_ours
from model.weights.names import DETECTRON2, TRANSFORMERS
from tests.parity.official import Official, forward, swin
from tests.parity.samples import assert_close, logits, randomise

SWIN_HEADS = (1, 2, 4, 8)
BACKBONES = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]},
    "swin": {"embed_dim": 16, "depths": [2, 2, 1, 2], "num_heads": list(SWIN_HEADS)},
}


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_official_names_mean_what_they_say(backbone: str) -> None:
    settings = ModelSettings(
        backbone=backbone,
        backbone_config=BACKBONES[backbone],
        queries=20,
        pixel_decoder=PixelDecoderSettings(layers=2, feedforward=64),
        masked_decoder=MaskedDecoderSettings(layers=4, feedforward=64),
    )
    torch.manual_seed(0)
    model = Mask2Former(settings, num_classes=5).eval().double()
    randomise(model)
    names = to_detectron2(model, settings, CriterionSettings(no_object_weight=0.3))
    weights = Official({name: torch.from_numpy(array) for name, array in names.items()})
    images = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    windows = {"window": 7, "heads": SWIN_HEADS} if backbone == "swin" else {}
    assert_close(logits(model, images), forward(weights, images, **windows), 1e-10)
    assert set(names) - weights.read == {"criterion.empty_weight"}
    assert names["criterion.empty_weight"].tolist() == pytest.approx([1] * 5 + [0.3])


@pytest.mark.parametrize("size", [(96, 160), (224, 32)])
@torch.no_grad()
def test_11_8_windows_are_shifted_and_padded_whatever_the_map(size: tuple[int, int]) -> None:
    """The last maps (3x5, 7x1) are no larger than a window (7): it is shifted all the same, and
    its padding takes part in attention."""
    settings = ModelSettings(backbone="swin", backbone_config=BACKBONES["swin"], queries=2)
    torch.manual_seed(0)
    model = Mask2Former(settings, num_classes=5).eval().double()
    randomise(model)
    names = to_detectron2(model, settings, CriterionSettings())
    weights = Official({name: torch.from_numpy(array) for name, array in names.items()})
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = swin(weights, images, 7, SWIN_HEADS)
    assert min(expected[-1].shape[2:]) < 7
    for x, wanted in zip(model.backbone(images).values(), expected, strict=True):
        torch.testing.assert_close(x, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", ["resnet101", "swin_small", "swin_base", "swin_large"])
def test_names_of_every_size_go_there_and_back(backbone: str) -> None:
    """Shapes alone; R50 and Swin-T go there and back bit by bit in tests/model/test_weights.py."""
    with torch.device("meta"):
        state = Mask2Former(ModelSettings(backbone=backbone), num_classes=133).state_dict()
    for names, kind in ((DETECTRON2, "a detectron2 "), (TRANSFORMERS, "a transformers ")):
        found, back = _to_ours(names.from_ours(state), state)
        assert found == f"{kind}checkpoint"
        assert {n: x.shape for n, x in back.items()} == {n: x.shape for n, x in state.items()}
