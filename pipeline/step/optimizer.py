"""AdamW's parameter groups: the weight decay and the learning rate of every tensor."""

from typing import Any

from torch import nn

from model.network import Network
from model.parts import layers
from pipeline.settings import OptimizerSettings

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)
POSITIONS = ("relative_position_bias_table", "continuous_position_bias_mlp", "logit_scale")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the groups {backbone, head} x {decayed, not decayed} without frozen tensors.

    With `optimizer.layer_decay`, the groups of the backbone are divided by its L layers, and layer
    n learns at layer_decay^(L + 1 - n) times the rate of the backbone (BEiT, arXiv 2106.08254).

    Norms, embeddings, Swin's relative-position tables, and the modules that replace these tables in
    Swin V2 do not decay. All other tensors decay, as in the reference, and so do biases and the
    level embedding of the pixel decoder. The pyramid of a plain ViT is not pretrained, so it learns
    at the rate of the head.
    """
    not_decayed: set[str] = set()
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}".lstrip(".")
            by_type = isinstance(module, (*NORMS, nn.Embedding))
            if by_type or any(part in full for part in POSITIONS):
                not_decayed.add(full)
    scales = _layer_scales(model, settings.layer_decay) if settings.layer_decay else {}
    groups: dict[tuple[str, bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pretrained = name.startswith("backbone.") and not name.startswith("backbone.pyramid.")
        part = "backbone" if pretrained else "head"
        decays = name not in not_decayed
        scale = scales.get(name, 1.0)
        group = groups.setdefault((part, decays, scale), {
            "name": f"{part}.{'decay' if decays else 'no_decay'}",
            "params": [],
            "lr": scale * settings.lr * (settings.backbone_lr_multiplier if pretrained else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
        })  # fmt: skip
        group["params"].append(parameter)
    return list(groups.values())


def _layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of every parameter of the backbone."""
    assert isinstance(model, Network)
    layer_of, last = layers(model.backbone)
    return {f"backbone.{name}": decay ** (last + 1 - layer) for name, layer in layer_of.items()}
