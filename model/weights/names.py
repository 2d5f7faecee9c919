"""Parameter names of this project, of the paper's code (detectron2), and of transformers.

One table is read in both directions. No tensor is transposed or permuted. The projections of
queries, keys, and values, which this project keeps as three matrices and other implementations may
keep as one, are stacked or split, and the positions of EoMT get one for the class token.
"""

import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

_PIXEL = "model.pixel_level_module."
_QUERY = "model.transformer_module."
_HEAD = "sem_seg_head."
_ENCODER = f"{_HEAD}pixel_decoder.transformer.encoder.layers.#."
_SELF = f"{_HEAD}predictor.transformer_self_attention_layers.#."
_CROSS = f"{_HEAD}predictor.transformer_cross_attention_layers.#."
_FFN = f"{_HEAD}predictor.transformer_ffn_layers.#."
_BODY = "backbone.body."
_BLOCK = f"{_BODY}swin.encoder.layers.#.blocks.#."
PATCH_POSITIONS = f"{_BODY}embeddings.patch_positions"  # stands for those with the class token's
QKV = ".qkv_proj."  # stands for .q_proj., .k_proj. and .v_proj., stacked

# Prefixes of names in this project, in detectron2, and in transformers. "#" stands for a number.
# The names do not differ after the prefix. The first row that matches is used.
# fmt: off
_HEADS = [
    ("pixel_decoder.input_proj.", f"{_HEAD}pixel_decoder.input_proj.",
     f"{_PIXEL}decoder.input_projections."),
    ("pixel_decoder.level_embed", f"{_HEAD}pixel_decoder.transformer.level_embed",
     f"{_PIXEL}decoder.level_embed"),
    ("pixel_decoder.layers.#.self_attn.", f"{_ENCODER}self_attn.",
     f"{_PIXEL}decoder.encoder.layers.#.self_attn."),
    ("pixel_decoder.layers.#.norm1.", f"{_ENCODER}norm1.",
     f"{_PIXEL}decoder.encoder.layers.#.self_attn_layer_norm."),
    ("pixel_decoder.layers.#.linear1.", f"{_ENCODER}linear1.",
     f"{_PIXEL}decoder.encoder.layers.#.fc1."),
    ("pixel_decoder.layers.#.linear2.", f"{_ENCODER}linear2.",
     f"{_PIXEL}decoder.encoder.layers.#.fc2."),
    ("pixel_decoder.layers.#.norm2.", f"{_ENCODER}norm2.",
     f"{_PIXEL}decoder.encoder.layers.#.final_layer_norm."),
    ("pixel_decoder.lateral.1.", f"{_HEAD}pixel_decoder.adapter_1.norm.",
     f"{_PIXEL}decoder.adapter_1.1."),
    ("pixel_decoder.lateral.0.", f"{_HEAD}pixel_decoder.adapter_1.",
     f"{_PIXEL}decoder.adapter_1.0."),
    ("pixel_decoder.output.1.", f"{_HEAD}pixel_decoder.layer_1.norm.",
     f"{_PIXEL}decoder.layer_1.1."),
    ("pixel_decoder.output.0.", f"{_HEAD}pixel_decoder.layer_1.",
     f"{_PIXEL}decoder.layer_1.0."),
    ("pixel_decoder.mask_features.", f"{_HEAD}pixel_decoder.mask_features.",
     f"{_PIXEL}decoder.mask_projection."),
    ("masked_decoder.query_feat.", f"{_HEAD}predictor.query_feat.", f"{_QUERY}queries_features."),
    ("masked_decoder.query_embed.", f"{_HEAD}predictor.query_embed.", f"{_QUERY}queries_embedder."),
    ("masked_decoder.level_embed.", f"{_HEAD}predictor.level_embed.", f"{_QUERY}level_embed."),
    (f"masked_decoder.layers.#.cross_attn{QKV}", f"{_CROSS}multihead_attn.in_proj_",
     f"{_QUERY}decoder.layers.#.cross_attn.in_proj_"),
    ("masked_decoder.layers.#.cross_attn.", f"{_CROSS}multihead_attn.",
     f"{_QUERY}decoder.layers.#.cross_attn."),
    ("masked_decoder.layers.#.norm1.", f"{_CROSS}norm.",
     f"{_QUERY}decoder.layers.#.cross_attn_layer_norm."),
    (f"masked_decoder.layers.#.self_attn{QKV}", f"{_SELF}self_attn.in_proj_", None),
    ("masked_decoder.layers.#.self_attn.", f"{_SELF}self_attn.",
     f"{_QUERY}decoder.layers.#.self_attn."),
    ("masked_decoder.layers.#.norm2.", f"{_SELF}norm.",
     f"{_QUERY}decoder.layers.#.self_attn_layer_norm."),
    ("masked_decoder.layers.#.linear1.", f"{_FFN}linear1.", f"{_QUERY}decoder.layers.#.fc1."),
    ("masked_decoder.layers.#.linear2.", f"{_FFN}linear2.", f"{_QUERY}decoder.layers.#.fc2."),
    ("masked_decoder.layers.#.norm3.", f"{_FFN}norm.",
     f"{_QUERY}decoder.layers.#.final_layer_norm."),
    ("masked_decoder.norm.", f"{_HEAD}predictor.decoder_norm.", f"{_QUERY}decoder.layernorm."),
    *((f"masked_decoder.mask_head.{2 * i}.", f"{_HEAD}predictor.mask_embed.layers.{i}.",
       f"{_QUERY}decoder.mask_predictor.mask_embedder.{i}.0.") for i in range(3)),
    ("masked_decoder.class_head.", f"{_HEAD}predictor.class_embed.", "class_predictor."),
]
_BACKBONES = [
    (f"{_BODY}swin.embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    (f"{_BODY}swin.embeddings.norm.", "backbone.patch_embed.norm."),
    (f"{_BLOCK}layernorm_before.", "backbone.layers.#.blocks.#.norm1."),
    (f"{_BLOCK}layernorm_after.", "backbone.layers.#.blocks.#.norm2."),
    (f"{_BLOCK}attention{QKV}", "backbone.layers.#.blocks.#.attn.qkv."),
    (f"{_BLOCK}attention.o_proj.", "backbone.layers.#.blocks.#.attn.proj."),
    (f"{_BLOCK}attention.relative_position_bias.relative_position_bias_table",
     "backbone.layers.#.blocks.#.attn.relative_position_bias_table"),
    (f"{_BLOCK}mlp.", "backbone.layers.#.blocks.#.mlp."),
    (f"{_BODY}swin.encoder.layers.#.downsample.", "backbone.layers.#.downsample."),
    *((f"{_BODY}hidden_states_norms.stage{i + 1}.", f"backbone.norm{i}.") for i in range(4)),
    (f"{_BODY}embedder.embedder.normalization.", "backbone.stem.conv1.norm."),
    (f"{_BODY}embedder.embedder.convolution.", "backbone.stem.conv1."),
    *((f"{_BODY}encoder.stages.{i}.layers.#.shortcut.normalization.",
       f"backbone.res{i + 2}.#.shortcut.norm.") for i in range(4)),
    *((f"{_BODY}encoder.stages.{i}.layers.#.shortcut.convolution.",
       f"backbone.res{i + 2}.#.shortcut.") for i in range(4)),
    *((f"{_BODY}encoder.stages.{i}.layers.#.layer.{j}.normalization.",
       f"backbone.res{i + 2}.#.conv{j + 1}.norm.") for i in range(4) for j in range(3)),
    *((f"{_BODY}encoder.stages.{i}.layers.#.layer.{j}.convolution.",
       f"backbone.res{i + 2}.#.conv{j + 1}.") for i in range(4) for j in range(3)),
]
# The same for EoMT: the paper's code, and transformers with learned and with rotary positions.
_VIT = f"{_BODY}encoder.layer.#."
_OFFICIAL = "network.encoder.backbone."
_EOMT = [
    ("masked_decoder.query_feat.", "network.q.", "query."),
    ("masked_decoder.class_head.", "network.class_head.", "class_predictor."),
    *((f"masked_decoder.mask_head.{2 * i}.", f"network.mask_head.{2 * i}.", f"mask_head.fc{i + 1}.")
      for i in range(3)),
    ("upscale.#.conv", "network.upscale.#.conv", "upscale_block.block.#.conv"),
    ("upscale.#.norm.", "network.upscale.#.norm.", "upscale_block.block.#.layernorm2d."),
    ("masked_share", "network.attn_mask_probs", "attn_mask_probs"),
]
_EOMT_OFFICIAL = [
    (f"{_BODY}embeddings.cls_token", f"{_OFFICIAL}cls_token"),
    (f"{_BODY}embeddings.register_tokens", f"{_OFFICIAL}reg_token"),
    (PATCH_POSITIONS, f"{_OFFICIAL}pos_embed"),
    (f"{_BODY}embeddings.patch_embeddings.projection.", f"{_OFFICIAL}patch_embed.proj."),
    (f"{_VIT}attention{QKV}", f"{_OFFICIAL}blocks.#.attn.qkv."),
    (f"{_VIT}attention.o_proj.", f"{_OFFICIAL}blocks.#.attn.proj."),
    *((f"{_VIT}layer_scale{i}.lambda1", f"{_OFFICIAL}blocks.#.ls{i}.gamma") for i in (1, 2)),
    (_VIT, f"{_OFFICIAL}blocks.#."),
    (f"{_BODY}layernorm.", f"{_OFFICIAL}norm."),
]
_EOMT_LEARNED = [
    (PATCH_POSITIONS, "embeddings.position_embeddings.weight"),
    (f"{_BODY}embeddings.", "embeddings."),
    (f"{_VIT}attention.o_proj.", "layers.#.attention.out_proj."),
    (_VIT, "layers.#."),
    (f"{_BODY}layernorm.", "layernorm."),
]
_EOMT_ROTARY = [
    (f"{_BODY}embeddings.", "embeddings."),
    (f"{_BODY}model.layer.#.", "layers.#."),
    (f"{_BODY}norm.", "layernorm."),
]
# fmt: on

# transformers writes Swin to disk under older names than it uses in memory. These replacements,
# applied in this order, give the names in memory.
_SWIN_ON_DISK = (
    (r"^backbone\.body\.(model\.)?(embeddings|encoder)\.", r"backbone.body.swin.\2."),
    (r"attention\.self\.([qkv])(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.self\.(relative_position_bias_table)", r"attention.relative_position_bias.\1"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)


class Names:
    """The parameter names of another implementation.

    Args:
        title: Name of the implementation, for errors.
        rows: Prefixes of names in this project and in the other implementation.
    """

    def __init__(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        self.title = title
        self.rows = list(rows)

    def to_ours(self, name: str) -> str | None:
        """Return the name in this project, which may contain `QKV`, or None if there is none."""
        return _rename(name, ((theirs, ours) for ours, theirs in self.rows))

    def from_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of this project under the names of the other implementation.

        Projections of queries, keys, and values are stacked if the other implementation does so.

        Raises:
            ValueError: The other implementation has no name for some tensors, which the text lists.
        """
        stacked = [row for row in self.rows if QKV in row[0]]
        named: dict[str, Tensor] = {}
        nameless: list[str] = []
        for name, tensor in state.items():
            projection = re.search(r"\.([qkv])_proj\.", name)
            if projection and _rename(name.replace(projection[0], QKV), stacked):
                if projection[1] != "q":
                    continue
                parts = [state[name.replace(projection[0], f".{x}_proj.")] for x in "qkv"]
                name, tensor = name.replace(projection[0], QKV), torch.cat(parts)
            theirs = _rename(name, self.rows)
            if theirs is None:
                nameless.append(f"{name} {list(tensor.shape)}")
            else:
                named[theirs] = tensor
        if nameless:
            raise ValueError(
                f"{self.title} has no name for {len(nameless)} tensors: {', '.join(nameless)}"
            )
        return named


DETECTRON2 = Names("detectron2", [*_BACKBONES, *((ours, theirs) for ours, theirs, _ in _HEADS)])
TRANSFORMERS = Names(
    "transformers",
    [
        (_BODY, f"{_PIXEL}encoder."),
        *((ours, theirs) for ours, _, theirs in _HEADS if theirs is not None),
    ],
)

_IN_EOMT = [(ours, theirs) for ours, _, theirs in _EOMT]
EOMT_LEARNED = Names("transformers", [*_IN_EOMT, *_EOMT_LEARNED])
EOMT_ROTARY = Names("transformers", [*_IN_EOMT, *_EOMT_ROTARY])
EOMT_OFFICIAL = Names(
    "the code of EoMT", [*((ours, theirs) for ours, theirs, _ in _EOMT), *_EOMT_OFFICIAL]
)


def converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor as the tensors of this project.

    The stacked projections of a name with `QKV` are split into three. `PATCH_POSITIONS`, [N, C] or
    [1, N, C], get a position of the class token, which is 0. Other tensors are unchanged.
    """
    if name == PATCH_POSITIONS and tensor.ndim > 1:
        positions = F.pad(tensor.reshape(1, -1, tensor.shape[-1]), (0, 0, 1, 0))
        return {f"{_BODY}embeddings.position_embeddings": positions}
    if QKV not in name or tensor.ndim == 0 or len(tensor) % 3:
        return {name: tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {name.replace(QKV, f".{letter}_proj."): part for letter, part in parts}


def modern_detectron2(name: str) -> str:
    """Return the name in the last version of the paper's code, given that of any version.

    Files of a backbone alone are one of these versions.
    """
    if re.match(r"(stem|res[2-5]|patch_embed|layers|norm\d?|head)\.", name):  # a backbone alone
        return f"backbone.{name}"
    if not name.startswith((f"{_HEAD}pixel_decoder.", f"{_HEAD}predictor.")):
        name = re.sub(f"^{re.escape(_HEAD)}", f"{_HEAD}pixel_decoder.", name)
    return name.replace("predictor.static_query.", "predictor.query_feat.")


def torchvision_to_detectron2(name: str) -> str:
    """Return the name that detectron2's converter gives to a tensor of torchvision's ResNet."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"^(conv1|bn1|fc)\.", r"stem.\1.", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def modern_swin(name: str) -> str:
    """Return the name in this project of a tensor of Swin, given the name on disk."""
    for old, new in _SWIN_ON_DISK:
        name = re.sub(old, new, name)
    return name


def _rename(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """Replace the prefix of `name` by the first row (old, new) that matches.

    Returns:
        The new name, or None if no row matches.
    """
    for old, new in rows:
        found = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if found:
            start = new.replace("#", "{}").format(*found.groups())
            return start + name[found.end() :]
    return None
