"""The exported names are right: the arithmetic of the paper's code gives our predictions."""

import pytest
import torch

from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from model.weights.export import to_detectron2
from model.weights.load import rename
from model.weights.names import DETECTRON2, TRANSFORMERS
from tests.parity.official import Official, forward, swin
from tests.parity.samples import assert_close, logits, randomize

SWIN_HEADS = (1, 2, 4, 8)
BACKBONES = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]},
    "swin": {"embed_dim": 16, "depths": [2, 2, 1, 2], "num_heads": list(SWIN_HEADS)},
}


def randomized(
    settings: ModelSettings, criterion: CriterionSettings
) -> tuple[Mask2Former, Official]:
    """Return a network with random norms and biases, and its weights as exported."""
    torch.manual_seed(0)
    model = Mask2Former(settings, num_classes=5).eval().double()
    randomize(model)
    names = to_detectron2(model, settings, criterion)
    return model, Official({name: torch.from_numpy(array) for name, array in names.items()})


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_official_names_give_our_predictions(backbone: str) -> None:
    settings = ModelSettings(
        backbone=backbone,
        backbone_config=BACKBONES[backbone],
        queries=20,
        pixel_decoder=PixelDecoderSettings(layers=2, feedforward=64),
        masked_decoder=MaskedDecoderSettings(layers=4, feedforward=64),
    )
    model, weights = randomized(settings, CriterionSettings(no_object_weight=0.3))
    images = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    windows = {"window": 7, "heads": SWIN_HEADS} if backbone == "swin" else {}
    assert_close(logits(model, images), forward(weights, images, **windows), 1e-10)
    assert weights.tensors.keys() - weights.read == {"criterion.empty_weight"}
    assert weights.tensors["criterion.empty_weight"].tolist() == pytest.approx([1] * 5 + [0.3])


@pytest.mark.parametrize("size", [(96, 160), (224, 32)])
@torch.no_grad()
def test_windows_are_shifted_and_padded_for_any_size(size: tuple[int, int]) -> None:
    """Windows are also shifted if the map is not larger than one, and padding is attended to.

    The last maps have 3x5 and 7x1 pixels, and a window has 7x7.
    """
    settings = ModelSettings(backbone="swin", backbone_config=BACKBONES["swin"], queries=2)
    model, weights = randomized(settings, CriterionSettings())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = swin(weights, images, 7, SWIN_HEADS)
    assert min(expected[-1].shape[2:]) < 7
    for x, wanted in zip(model.backbone(images).values(), expected, strict=True):
        torch.testing.assert_close(x, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", ["resnet101", "swin_small", "swin_base", "swin_large"])
def test_names_of_every_size_are_exported_and_read(backbone: str) -> None:
    """Only shapes are compared; tests/model/test_weights.py compares values of R50 and Swin-T."""
    with torch.device("meta"):
        state = Mask2Former(ModelSettings(backbone=backbone), num_classes=133).state_dict()
    for names, kind in ((DETECTRON2, "a detectron2 "), (TRANSFORMERS, "a transformers ")):
        found, back = rename(names.from_ours(state), state)
        assert found == f"{kind}checkpoint"
        assert {n: x.shape for n, x in back.items()} == {n: x.shape for n, x in state.items()}
