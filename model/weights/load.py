"""Initialize a network from a file of weights, which must fit completely."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.network import Network
from model.weights.classes import (
    CLASS_HEAD,
    ClassRows,
    Match,
    fits_class_head,
    same_number,
    take_names,
    take_rows,
)
from model.weights.files import read
from model.weights.names import (
    DETECTRON2,
    EOMT_LEARNED,
    EOMT_OFFICIAL,
    EOMT_ROTARY,
    TRANSFORMERS,
    converted,
    modern_detectron2,
    modern_swin,
    torchvision_to_detectron2,
)

SHOWN = 6  # the largest number of names that the summary shows per list

# Tensors of files that the network does not use: constants that can be computed, norms whose output
# reaches no feature map, the mask token of pretraining, and counters without effect.
_UNUSED = re.compile(
    r"criterion\.|(network\.encoder\.)?pixel_(mean|std)$|backbone\.body\.((swin\.)?layernorm\.|embeddings\.mask_token$)"
    r"|.*\.(relative_position_index|attn_mask|num_batches_tracked)$"
)
# The file of a backbone that was trained as a classifier may also contain the classifier's head.
_CLASSIFIER = re.compile(r"(backbone\.body\.|stem\.)?(fc|head|norm|classifier)\.")
# torch.hub names a file after the first digits of its sha256: resnet50-0676ba61.pth.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")
# Classification checkpoints lack the norms of feature maps, which start as the identity, and the
# pyramid of a plain ViT.
_NOT_IN_CLASSIFIERS = ("backbone.body.hidden_states_norms.", "backbone.pyramid.")


@dataclass(frozen=True)
class Loaded:
    """The weights that a file provides for a network.

    Attributes:
        kind: The format of the file, in words.
        state: The tensors under the names of this project.
        fresh: Tensors of the network that keep their initial values, as "name [shape]".
        unused: Tensors of the file that the network does not use, as "name [shape]".
        classes: What was compared or assumed about the classes; "" if the file has none.
    """

    kind: str
    state: dict[str, Tensor]
    fresh: list[str]
    unused: list[str]
    classes: str

    def __str__(self) -> str:
        """Return a summary in one line, with the first names of each list."""
        parts = [f"{self.kind}: {len(self.state)} tensors loaded"]
        if self.classes:
            parts.append(self.classes)
        for what, names in (("keep their initial values", self.fresh), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
        return "; ".join(parts)


def load(model: Network, path: str | Path, match: Match | None = None) -> Loaded:
    """Load the weights in `path` into `model`; see `fit` for the formats and errors."""
    loaded = fit(model, path, match)
    model.load_state_dict(loaded.state, strict=False)
    return loaded


def load_backbone(model: Network, path: str | Path) -> Loaded:
    """Load the backbone in the file `path` into `model`; see `fit_backbone` for the errors."""
    loaded = fit_backbone(model, path)
    model.load_state_dict(loaded.state, strict=False)
    return loaded


def fit_backbone(model: Network, path: str | Path) -> Loaded:
    """Return the tensors of a file of `model.weights`, which holds a backbone, like `fit`.

    Raises:
        ValueError: The file cannot be read, does not fit, holds more than a backbone, or does not
            have the hash in its name.
    """
    where = f"model.weights={path}"
    if (named := _HASH_IN_NAME.search(Path(path).name)) and Path(path).is_file():
        with Path(path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(named[1]):
            begins = found[: len(named[1])]
            raise ValueError(
                f"{where}: its sha256 begins with {begins}, and not with {named[1]} as its name "
                "says; download it again, or rename it if it is another file"
            )
    loaded = fit(model, path, key="model.weights")
    if not all(name.startswith("backbone.") for name in loaded.state):
        raise ValueError(f"{where}: {loaded.kind} has more than a backbone; use model.init_from")
    return loaded


def fit(
    model: Network,
    path: str | Path,
    match: Match | None = None,
    key: str = "model.init_from",
) -> Loaded:
    """Return the tensors of `path` that fit `model`, without changing `model`.

    A row of the class head for which the file has no class keeps its initial values. A
    classification checkpoint fills only the backbone, except the norms and the pyramid that it does
    not contain.

    Args:
        model: The network, which may be on the device "meta".
        path: A checkpoint of this project, a file of the paper's code (`.pkl` or `.pth`, with the
            names of any of its versions), a file or folder of transformers, or an ImageNet
            backbone of the paper's code, of transformers, or of torchvision.
        match: Chooses the row of each class. By default, the rows of a file with the same number of
            classes are taken in their order.
        key: The setting that names the path, for errors.

    Raises:
        ValueError: The file cannot be read or does not fit. The text lists every tensor that is
            missing, unknown, or of another shape, or says what is wrong with the classes.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        tensors = read(Path(path))
        names = take_names(Path(path), tensors)
        kind, found = rename(tensors, expected)
        shapes = {name: list(tensor.shape) for name, tensor in found.items()}
        fresh, unused = _compare(kind, shapes, expected)
        if not fits_class_head(shapes, expected):
            head, classes = {}, ClassRows([], "")
        else:
            match = match or same_number(model.masked_decoder.class_head.out_features - 1)
            classes = match(names, shapes[CLASS_HEAD[0]][0] - 1)
            head = take_rows(model, found, classes.rows)
    except ValueError as error:
        raise ValueError(f"{key}={path}: {error}") from error
    if None in classes.rows:
        why = f"{classes.rows.count(None)} classes are not in the file" if head else ""
        fresh += [
            f"{n} {expected[n]} ({why or f'the file has other classes: {shapes[n]}'})"
            for n in CLASS_HEAD
        ]
    state = {n: t for n, t in found.items() if n in expected and n not in CLASS_HEAD} | head
    return Loaded(kind, state, fresh, unused, classes.text)


def _compare(
    kind: str, shapes: dict[str, list[int]], expected: dict[str, list[int]]
) -> tuple[list[str], list[str]]:
    """Compare the tensors of a file with those of a network.

    Args:
        kind: The format of the file, for the error.
        shapes: The shapes in the file, under the names of this project.
        expected: The shapes in the network.

    Returns:
        The tensors that keep their initial values, and those of the file that are not used.

    Raises:
        ValueError: Some do not fit. The text lists them.
    """
    backbone_only = all(name.startswith("backbone.") for name in shapes.keys() & expected.keys())
    absent = [n for n in expected if n not in shapes and not n.endswith(".num_batches_tracked")]
    fresh = [name for name in absent if backbone_only and _keeps_initial_values(name)]
    beyond = [name for name in shapes if name not in expected]
    unused = [name for name in beyond if _is_unused(name, backbone_only)]
    any_classes = CLASS_HEAD if fits_class_head(shapes, expected) else ()
    problems = {
        "missing": _with_shapes([name for name in absent if name not in fresh], expected),
        "unknown": _with_shapes([name for name in beyond if name not in unused], shapes),
        "of another shape": [
            f"{name} {shape} instead of {expected[name]}" for name, shape in shapes.items()
            if name in expected and shape != expected[name] and name not in any_classes
        ],
    }  # fmt: skip
    if any(problems.values()):
        text = "; ".join(
            f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names
        )
        raise ValueError(
            f"{kind} does not fit model.backbone and the other settings of the network: {text}"
        )
    return _with_shapes(fresh, expected), _with_shapes(unused, shapes)


def network_weights(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network in a checkpoint of this project, without the optimizer's.

    A run that averages its weights (`optimizer.ema`) is scored, exported, and built upon with the
    averages.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        named = checkpoint.items()
        return {n.removeprefix(prefix): t for n, t in named if n.startswith(prefix)}

    return part("model.") | part("average.")


def rename(tensors: dict[str, Tensor], expected: Iterable[str]) -> tuple[str, dict[str, Tensor]]:
    """Return the format of a file, and its tensors under the names of this project.

    A tensor for which this project has no name keeps the name that it has in the file.
    """
    if any(name.startswith("model.masked_decoder.") for name in tensors):
        tensors = network_weights(tensors)
    kind, translate = _dialect(tensors)
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for part, values in converted(translate(name) or name, tensor).items():
            candidates = (part, modern_swin(part))
            ours[next((c for c in candidates if c in expected), part)] = values
    return kind, ours


def _dialect(names: Iterable[str]) -> tuple[str, Callable[[str], str | None]]:
    """Return the format that has these names, and the function that translates one of them.

    The function may return None for a name that has no equivalent in this project.
    """
    lines = "\n".join(names)

    def some(pattern: str) -> bool:
        return re.search(f"^{pattern}", lines, re.MULTILINE) is not None

    if some(r"(model\.)?masked_decoder\."):
        return "a checkpoint of this project", lambda name: name.removeprefix("model.")
    if some(r"model\.transformer_module\."):
        return "a transformers checkpoint", TRANSFORMERS.to_ours
    if some(r"network\.upscale\."):
        return "a checkpoint of EoMT", EOMT_OFFICIAL.to_ours
    if some(r"upscale_block\."):
        is_learned = some(r"embeddings\.position_embeddings\.")
        return "a transformers checkpoint", (EOMT_LEARNED if is_learned else EOMT_ROTARY).to_ours
    if some(r"sem_seg_head\."):
        return "a detectron2 checkpoint", _from_detectron2
    if some(r"(backbone\.)?(res2|patch_embed)\."):
        return "an official backbone", _from_detectron2
    if some(r"layer1\."):
        return "a torchvision backbone", lambda n: _from_detectron2(torchvision_to_detectron2(n))
    return "a transformers backbone", _from_backbone


def _from_detectron2(name: str) -> str | None:
    """Translate the name of a tensor in any version of the paper's code, or return None."""
    return DETECTRON2.to_ours(modern_detectron2(name))


def _from_backbone(name: str) -> str:
    """Translate the name of a tensor in a backbone of transformers.

    Classifiers put the name of their family before the backbone's names. The names of DINOv3 lack
    the part `model`, and DINOv2 is written to disk under older names.
    """
    name = re.sub(r"^(resnet|swin|swinv2|convnext|dinov2_with_registers)\.", "", name)
    name = re.sub(r"attention\.attention\.([qkv])(uery|ey|alue)\.", r"attention.\1_proj.", name)
    name = re.sub(r"(layer\.\d+\.attention)\.output\.dense\.", r"\1.o_proj.", name)
    return "backbone.body." + re.sub(r"^layer\.", "model.layer.", name)


def _is_unused(name: str, backbone_only: bool) -> bool:
    return bool(_UNUSED.match(name) or (backbone_only and _CLASSIFIER.match(name)))


def _keeps_initial_values(name: str) -> bool:
    """Return whether a file that holds only a backbone may lack this tensor."""
    return not name.startswith("backbone.") or name.startswith(_NOT_IN_CLASSIFIERS)


def _with_shapes(names: Iterable[str], shapes: dict[str, list[int]]) -> list[str]:
    return [f"{name} {shapes[name]}" for name in names]
