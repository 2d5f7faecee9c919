"""Parameter names of transformers' Mask2FormerForUniversalSegmentation, in ours."""

import re

from torch import Tensor

_PIXEL = "model.pixel_level_module."
_QUERY = "model.transformer_module."
_ENCODER = rf"{_PIXEL}decoder\.encoder\.layers\.(\d+)\."
_DECODER = rf"{_QUERY}decoder\.layers\.(\d+)\."

# Prefixes of transformers' names -> ours, first match wins; \1 is a layer number.
_RULES = [
    (rf"{_PIXEL}encoder\.", "backbone.body."),
    (rf"{_PIXEL}decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (rf"{_PIXEL}decoder\.level_embed", "pixel_decoder.level_embed"),
    (rf"{_ENCODER}self_attn_layer_norm\.", r"pixel_decoder.layers.\1.norm1."),
    (rf"{_ENCODER}final_layer_norm\.", r"pixel_decoder.layers.\1.norm2."),
    (rf"{_ENCODER}fc", r"pixel_decoder.layers.\1.linear"),
    (rf"{_ENCODER}", r"pixel_decoder.layers.\1."),
    (rf"{_PIXEL}decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (rf"{_PIXEL}decoder\.layer_1\.", "pixel_decoder.output."),
    (rf"{_PIXEL}decoder\.mask_projection\.", "pixel_decoder.mask_features."),
    (rf"{_QUERY}queries_features\.", "masked_decoder.query_feat."),
    (rf"{_QUERY}queries_embedder\.", "masked_decoder.query_embed."),
    (rf"{_QUERY}level_embed\.", "masked_decoder.level_embed."),
    (rf"{_DECODER}cross_attn_layer_norm\.", r"masked_decoder.layers.\1.norm1."),
    (rf"{_DECODER}self_attn_layer_norm\.", r"masked_decoder.layers.\1.norm2."),
    (rf"{_DECODER}final_layer_norm\.", r"masked_decoder.layers.\1.norm3."),
    (rf"{_DECODER}fc", r"masked_decoder.layers.\1.linear"),
    (rf"{_DECODER}", r"masked_decoder.layers.\1."),
    (rf"{_QUERY}decoder\.layernorm\.", "masked_decoder.norm."),
    (
        rf"{_QUERY}decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.",
        lambda match: f"masked_decoder.mask_head.{2 * int(match[1])}.",
    ),
    (r"class_predictor\.", "masked_decoder.class_head."),
]
_UNUSED = re.compile(r"criterion\.|.*\.swin\.layernorm\.")


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a transformers state dict under our names; fused projections are split."""
    renamed = {}
    for name, tensor in state.items():
        if _UNUSED.match(name):
            continue
        ours = _rename(name)
        if "in_proj_" in ours:  # cross_attn.in_proj_{weight,bias}: rows of q, k, v
            head, kind = ours.rsplit("in_proj_", 1)
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{head}{letter}_proj.{kind}"] = rows
        else:
            renamed[ours] = tensor
    return renamed


def _rename(name: str) -> str:
    for pattern, ours in _RULES:
        renamed, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return renamed
    raise KeyError(name)
