"""The settings of a network from the config.json of a folder of transformers."""

from pathlib import Path
from typing import Any

from transformers import EomtConfig, EomtDinov3Config, Mask2FormerConfig, PreTrainedConfig

from model.families import BACKBONES, STRIDES
from model.network_settings import (
    EomtSettings,
    MaskedDecoderSettings,
    ModelSettings,
    PixelDecoderSettings,
)
from model.weights.export import POINTS

# Fields that `Backbone` sets itself, or that do not change the predictions of a trained network.
_OWN = ("out_features", "out_indices", "drop_path_rate", "pos_embed_rescale")
# Fields of Mask2FormerConfig that this project computes in one way only.
_FIXED = {"pre_norm": False, "common_stride": 4, "num_feature_levels": 3}
# The config and the backbone of each kind of EoMT, by its model_type.
_EOMT = {"eomt": (EomtConfig, "dinov2_vit"), "eomt_dinov3": (EomtDinov3Config, "dinov3_vit")}


def read_settings(folder: Path) -> ModelSettings:
    """Return the settings with which this project builds the network of a folder.

    Raises:
        ValueError: The folder has no config of a Mask2Former or an EoMT, or this project cannot
            compute it. The text names the field.
    """
    try:
        fields, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        kind, _ = _EOMT.get(fields.get("model_type", ""), (Mask2FormerConfig, ""))
        config: Any = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any class, as the library raises it for values of other types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"config.json cannot be read: {reason}") from error
    if config.model_type in _EOMT:
        return _eomt(config)
    if config.model_type != "mask2former":
        raise ValueError(f"config.json is of model_type={config.model_type!r}, not mask2former")
    fixed = _FIXED | dict.fromkeys(("feature_size", "mask_feature_size"), config.hidden_dim)
    _check(config, fixed)
    body: Any = config.backbone_config
    heads = config.num_attention_heads
    return ModelSettings(
        backbone=_family(body),
        backbone_config=_differences(body, body.model_type),
        queries=config.num_queries,
        dim=config.hidden_dim,
        pixel_decoder=PixelDecoderSettings(
            layers=config.encoder_layers,
            heads=heads,
            points=POINTS,
            feedforward=config.encoder_feedforward_dim,
        ),
        masked_decoder=MaskedDecoderSettings(
            layers=config.decoder_layers - 1,  # transformers counts predictions, not layers
            heads=heads,
            feedforward=config.dim_feedforward,
        ),
    )


def _eomt(config: Any) -> ModelSettings:
    """Return the settings of an EoMT, whose config has the fields of its backbone, too."""
    _check(config, {"hidden_act": "gelu", "use_swiglu_ffn": False, "num_upscale_blocks": 2})
    _, backbone = _EOMT[config.model_type]
    rope = getattr(config, "rope_parameters", None) or {}
    return ModelSettings(
        backbone=backbone,
        backbone_config=_differences(config, backbone)
        | {key: rope[key] for key in ("rope_theta",) if key in rope},
        head="eomt",
        queries=config.num_queries,
        eomt=EomtSettings(blocks=config.num_blocks),
    )


def _check(config: Any, fixed: dict[str, Any]) -> None:
    for name, value in fixed.items():
        if getattr(config, name, value) != value:
            raise ValueError(
                f"config.json: {name}={getattr(config, name)}, but this network has {value}"
            )


def _family(body: PreTrainedConfig) -> str:
    kind = getattr(body, "model_type", None)
    if kind not in BACKBONES or len(getattr(body, "depths", STRIDES)) != len(STRIDES):
        raise ValueError(f"config.json: a backbone of model_type={kind!r} is not supported")
    return str(kind)


def _differences(body: PreTrainedConfig, name: str) -> dict[str, object]:
    """Return the fields of a backbone that differ from what its family has here by default."""
    family, architecture = BACKBONES[name]
    usual = family.config(**architecture)
    known = [key for key in family.config.__annotations__ if not key.startswith("_")]
    fields = {key: getattr(body, key) for key in known if key not in _OWN and hasattr(body, key)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in fields.items()
        if value != getattr(usual, key, None)
    }
