"""Networks with random norms and biases, for comparison with other implementations."""

import torch
from torch import Tensor

from model.mask2former import Mask2Former


def randomize(module: torch.nn.Module) -> None:
    """Add noise to every parameter and running statistic, because many start as constants."""
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
            tensor.add_(0.3 * tensor.std(correction=0).clamp(min=0.03) * noise)


def logits(model: Mask2Former, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the class logits and the mask logits of every prediction of our network."""
    predictions = model(images)
    masks = torch.einsum("lbqc,bchw->lbqhw", predictions.mask_embeddings, predictions.mask_features)
    return list(predictions.class_logits), list(masks)


def assert_close(
    ours: tuple[list[Tensor], list[Tensor]],
    theirs: tuple[list[Tensor], list[Tensor]],
    tolerance: float,
    predictions: int | None = None,
) -> None:
    """Check that predictions agree to an absolute `tolerance` and are not trivial.

    Args:
        ours: Class logits and mask logits of every prediction.
        theirs: The same of the other implementation.
        tolerance: The largest absolute difference.
        predictions: How many of the first predictions are compared; all if None.
    """
    for mine, others in zip(ours, theirs, strict=True):
        assert len(mine) == len(others) > 1
        for a, b in list(zip(mine, others, strict=True))[:predictions]:
            assert b.std() > 0.1
            assert (a - b).abs().max() < tolerance
    share = (torch.stack(theirs[1]) > 0).double().mean()
    assert 0.01 < share < 0.99, "the attention masks must exclude some pixels and permit others"
