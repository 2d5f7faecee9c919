"""Our forward pass against transformers' Mask2Former with the same random weights."""

import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from model.mask2former import Mask2Former, ModelSettings
from tests.parity.transformers_names import from_transformers

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NUM_CLASSES = 7


def randomise(module: torch.nn.Module) -> None:
    """Move every parameter and running statistic off its initial value, mildly."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or "criterion" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.mul_(1 + 0.3 * noise.abs())
        elif "running_mean" in name or tensor.ndim == 1:
            tensor.add_(0.1 * noise)
        else:
            tensor.add_(0.3 * tensor.std().clamp(min=0.03) * noise)


def build(backbone: str) -> tuple[Mask2FormerForUniversalSegmentation, Mask2Former]:
    torch.manual_seed(0)
    if backbone == "swin_tiny":
        config = SwinConfig(out_features=STAGES)
    else:
        config = ResNetConfig(out_features=STAGES)
    theirs = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=config, num_labels=NUM_CLASSES, num_queries=30)
    ).eval()
    randomise(theirs)
    ours = Mask2Former(ModelSettings(backbone=backbone, queries=30), NUM_CLASSES).eval()
    state = from_transformers(theirs.state_dict())
    if backbone == "resnet50":  # frozen normalisation counts no batches
        state = {name: x for name, x in state.items() if "num_batches_tracked" not in name}
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("backbone", ["resnet50", "swin_tiny"])
@torch.no_grad()
def test_logits(backbone: str) -> None:
    theirs, ours = build(backbone)
    images = torch.randn(1, 3, 96, 128)
    for dtype, tolerance, compared in ((torch.float32, 1e-4, 1), (torch.float64, 1e-8, 10)):
        theirs, ours, images = theirs.to(dtype), ours.to(dtype), images.to(dtype)
        expected = theirs(images, output_auxiliary_logits=True)
        aux = expected.auxiliary_logits
        classes = [x["class_queries_logits"] for x in aux] + [expected.class_queries_logits]
        masks = [x["masks_queries_logits"] for x in aux] + [expected.masks_queries_logits]
        predictions = ours(images)
        ours_masks = torch.einsum(
            "lbqc,bchw->lbqhw", predictions.mask_embeddings, predictions.mask_features
        )
        assert len(classes) == len(predictions.class_logits) == 10
        assert 0.05 < (masks[0] > 0).double().mean() < 0.95  # attention masks do mask
        for i in range(compared):
            # a later fp32 prediction may differ where one bit of an attention mask flips
            assert torch.std(classes[i]) > 0.1
            assert torch.std(masks[i]) > 0.1
            assert (predictions.class_logits[i] - classes[i]).abs().max() < tolerance
            assert (ours_masks[i] - masks[i]).abs().max() < tolerance
