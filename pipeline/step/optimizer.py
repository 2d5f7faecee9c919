"""AdamW's parameter groups: which tensor decays, and at which rate it learns."""

from torch import nn

from pipeline.settings import OptimizerSettings

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


POSITIONS = ("relative_position_bias_table", "continuous_position_bias_mlp", "logit_scale")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Groups for AdamW: {backbone, head} x {decayed, not decayed}; frozen tensors are left out.

    Not decayed: norms, embeddings, Swin's relative-position tables and what Swin V2 has in their
    place. Everything else is, biases and the pixel decoder's level embedding included, as in the
    reference. The pyramid of a plain ViT starts anew and learns as the head does.
    """
    not_decayed = set()
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}".lstrip(".")
            kind = isinstance(module, (*NORMS, nn.Embedding))
            if kind or any(part in full for part in POSITIONS):
                not_decayed.add(full)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pretrained = name.startswith("backbone.") and not name.startswith("backbone.pyramid.")
        part = "backbone" if pretrained else "head"
        decays = name not in not_decayed
        group = groups.setdefault((part, decays), {
            "name": f"{part}.{'decay' if decays else 'no_decay'}",
            "params": [],
            "lr": settings.lr * (settings.backbone_lr_multiplier if part == "backbone" else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
        })  # fmt: skip
        group["params"].append(parameter)
    return list(groups.values())
