"""One training step of R50 at 512 pixels with 20 masks, beside transformers with the same weights.

The peer trains with its BatchNorms in eval(), as ours are frozen. Saved bytes are unique storages
that autograd keeps for backward, without parameters, buffers and inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from jobs.bench import alternate, row
from model.criterion import Criterion, CriterionSettings, normalisers
from model.mask2former import Mask2Former, ModelSettings
from model.targets import Targets
from model.weights.export import transformers_config, transformers_state

CLASSES, SIZE, MASKS = 133, 512, 20


def rows() -> list[dict]:
    """Seconds and saved bytes of forward, criterion and backward."""
    torch.manual_seed(0)
    settings, criterion = ModelSettings(drop_path=0), CriterionSettings()
    ours = Mask2Former(settings, CLASSES).train()
    labels = [str(i) for i in range(CLASSES)]
    peer = Mask2FormerForUniversalSegmentation(
        transformers_config(ours, settings, criterion, labels)
    )
    peer.load_state_dict(transformers_state(ours, criterion, peer))
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images, targets = case()
    total = normalisers(targets.categories, settings.queries, criterion)
    masks = [(targets.maps[0] == targets.value[0, :, None, None]).float()]

    def our_loss() -> Tensor:
        losses = Criterion(criterion)(ours(images), targets, lambda b, p, s: torch.rand(s), total)
        return torch.stack(list(losses.values())).sum()

    def peer_loss() -> Tensor:
        return peer(images, mask_labels=masks, class_labels=[targets.categories[0]]).loss

    seconds = alternate(
        {"ours": lambda: step(ours, our_loss), "peer": lambda: step(peer, peer_loss)}
    )
    saved = {
        "ours": saved_bytes(ours, images, our_loss),
        "peer": saved_bytes(peer, images, peer_loss),
    }
    names = (("time", "s", seconds, "<= 0.6x"), ("saved_bytes", "MiB", saved, "<= 0.45x"))
    return [
        row(
            f"step.{name}.r50_{SIZE}",
            unit,
            values["ours"],
            peer=values["peer"],
            peer_name="transformers",
            better="lower",
            target=target,
        )
        for name, unit, values, target in names
    ]


def case() -> tuple[Tensor, Targets]:
    """A random image and 20 boxes."""
    maps = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    for n in range(MASKS):
        top, left = torch.randint(0, SIZE - 100, (2,)).tolist()
        height, width = torch.randint(20, 200, (2,)).tolist()
        maps[..., top : top + height, left : left + width] = n + 1
    categories = torch.randint(0, CLASSES, (1, MASKS))
    values = torch.arange(1, MASKS + 1)[None]
    return torch.randn(1, 3, SIZE, SIZE), Targets(
        maps, categories, torch.zeros_like(values), values
    )


def step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Forward, criterion and backward."""
    loss().backward()
    model.zero_grad(set_to_none=True)


def saved_bytes(model: nn.Module, images: Tensor, loss: Callable[[], Tensor]) -> float:
    """MiB that autograd keeps between forward and backward."""
    given = {
        x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers(), images)
    }
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values()) / 2**20
