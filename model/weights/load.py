"""Start values for a network from anybody's file: all of it fits, or what does not is listed."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.mask2former import Mask2Former
from model.weights.files import read
from model.weights.names import (
    DETECTRON2,
    TRANSFORMERS,
    modern_detectron2,
    modern_swin,
    split_stacked,
    torchvision_to_detectron2,
)

CLASS_HEAD = ("masked_decoder.class_head.weight", "masked_decoder.class_head.bias")
SHOWN = 6  # names of a list that a person is shown

# What files hold beside the network: constants that can be computed, norms that reach no feature
# map, a token of pretraining, counters without effect, and, in files of a backbone alone, its
# classifier.
_OF_NO_USE = re.compile(
    r"criterion\.|pixel_(mean|std)$|backbone\.body\.((swin\.)?layernorm\.|embeddings\.mask_token$)"
    r"|.*\.(relative_position_index|attn_mask|num_batches_tracked)$"
)
_OF_CLASSIFIERS = re.compile(r"(backbone\.body\.|stem\.)?(fc|head|norm|classifier)\.")
# Norms of feature maps, which start at identity, and the pyramid of a plain ViT are not part of
# classification checkpoints.
_OF_SEGMENTERS = ("backbone.body.hidden_states_norms.", "backbone.pyramid.")


@dataclass(frozen=True)
class Loaded:
    """What a file gave: its kind, the tensors by our names, and what it left open.

    Attributes:
        fresh: our tensors that keep their initial values, as "name [shape]".
        unused: tensors of the file of which the network has no use, as "name [shape]".
    """

    kind: str
    state: dict[str, Tensor]
    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        parts = [f"{self.kind}: {len(self.state)} tensors loaded"]
        for what, names in (("keep their initial values", self.fresh), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
        return "; ".join(parts)


def load(model: Mask2Former, path: str | Path) -> Loaded:
    """Give `model` the weights in `path`; see `fit` for what that may be and for errors."""
    loaded = fit(model, path)
    model.load_state_dict(loaded.state, strict=False)
    return loaded


def fit(model: Mask2Former, path: str | Path) -> Loaded:
    """The tensors of `path` under our names, checked against `model`, which stays as it is.

    `path` is a checkpoint of ours, a file of the official code (`.pkl`, `.pth`, any generation of
    its names), a folder or file of transformers, or an ImageNet backbone of either or of
    torchvision, which fills the backbone alone. The class head of another number of classes keeps
    its initial values, and so do the norms and the pyramid that a classification checkpoint lacks.

    Raises ValueError listing every tensor that is missing, unknown or of another shape.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        kind, found = _to_ours(read(Path(path)), expected)
    except ValueError as error:
        raise ValueError(f"model.init_from={path}: {error}") from error
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    backbone_only = all(name.startswith("backbone.") for name in found.keys() & expected.keys())

    absent = [n for n in expected if n not in found and not n.endswith(".num_batches_tracked")]
    fresh = [name for name in absent if backbone_only and _stays_fresh(name)]
    missing = [name for name in absent if name not in fresh]
    beyond = [name for name in found if name not in expected]
    unused = [name for name in beyond if _is_of_no_use(name, backbone_only)]
    unknown = [name for name in beyond if name not in unused]
    unlike = [name for name in found if name in expected and shapes[name] != expected[name]]
    class_head = [name for name in unlike if name in CLASS_HEAD]
    if not all(shapes[name][1:] == expected[name][1:] for name in class_head):
        class_head = []
    unlike = [
        f"{n} {shapes[n]} where {expected[n]} is needed" for n in unlike if n not in class_head
    ]
    if missing or unknown or unlike:
        lists = (
            ("missing", _with_shapes(missing, expected)),
            ("unknown", _with_shapes(unknown, shapes)),
            ("of another shape", unlike),
        )
        text = "; ".join(
            f"{len(names)} {what}: {', '.join(names)}" for what, names in lists if names
        )
        raise ValueError(
            f"model.init_from={path}, {kind}, does not fit model.backbone and the sizes under "
            f"model: {text}"
        )
    fresh = _with_shapes(fresh, expected)
    fresh += [f"{n} {expected[n]} (for other classes: {shapes[n]})" for n in class_head]
    state = {n: t for n, t in found.items() if n in expected and n not in class_head}
    return Loaded(kind, state, fresh, _with_shapes(unused, shapes))


def _to_ours(tensors: dict[str, Tensor], expected: Iterable[str]) -> tuple[str, dict[str, Tensor]]:
    """What kind of file this is, and its tensors under our names, where they have one."""
    if any(name.startswith("model.masked_decoder.") for name in tensors):  # moments stay behind
        tensors = {n: t for n, t in tensors.items() if n.startswith("model.")}
    kind, translate = _dialect(tensors)
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for part, values in split_stacked(translate(name) or name, tensor).items():
            candidates = (part, modern_swin(part))
            ours[next((c for c in candidates if c in expected), part)] = values
    return kind, ours


def _dialect(names: Iterable[str]) -> tuple[str, Callable[[str], str | None]]:
    """What kind of file has these names, and how one of them becomes ours (None: not at all)."""
    lines = "\n".join(names)

    def some(pattern: str) -> bool:
        return re.search(f"^{pattern}", lines, re.MULTILINE) is not None

    if some(r"(model\.)?masked_decoder\."):
        return "a checkpoint of ours", lambda name: name.removeprefix("model.")
    if some(r"model\.transformer_module\."):
        return "a transformers checkpoint", TRANSFORMERS.to_ours
    if some(r"sem_seg_head\."):
        return "a detectron2 checkpoint", _from_detectron2
    if some(r"(backbone\.)?(res2|patch_embed)\."):
        return "an official backbone", _from_detectron2
    if some(r"layer1\."):
        return "a torchvision backbone", lambda n: _from_detectron2(torchvision_to_detectron2(n))
    return "a transformers backbone", _from_backbone


def _from_detectron2(name: str) -> str | None:
    return DETECTRON2.to_ours(modern_detectron2(name))


def _from_backbone(name: str) -> str:
    """Models of a backbone and a head call the backbone by its family; DINOv3 skips its encoder."""
    name = re.sub(r"^(resnet|swin|swinv2|convnext)\.", "", name)
    return "backbone.body." + re.sub(r"^layer\.", "model.layer.", name)


def _is_of_no_use(name: str, backbone_only: bool) -> bool:
    return bool(_OF_NO_USE.match(name) or (backbone_only and _OF_CLASSIFIERS.match(name)))


def _stays_fresh(name: str) -> bool:
    return not name.startswith("backbone.") or name.startswith(_OF_SEGMENTERS)


def _with_shapes(names: Iterable[str], shapes: dict[str, list[int]]) -> list[str]:
    return [f"{name} {shapes[name]}" for name in names]
