"""The settings of a network from the config.json of a folder of transformers."""

from pathlib import Path
from typing import Any

from transformers import Mask2FormerConfig, PreTrainedConfig

from model.families import BACKBONES, STRIDES
from model.network_settings import MaskedDecoderSettings, ModelSettings, PixelDecoderSettings
from model.weights.export import POINTS

# Fields that `Backbone` sets itself, or that do not change the predictions of a trained network.
_OWN = ("out_features", "out_indices", "drop_path_rate")
# Fields of Mask2FormerConfig that this project computes in one way only.
_FIXED = {"pre_norm": False, "common_stride": 4, "num_feature_levels": 3}


def read_settings(folder: Path) -> ModelSettings:
    """Return the settings with which this project builds the network of a folder.

    Raises:
        ValueError: The folder has no config of a Mask2Former, or this project cannot compute it.
            The text names the field.
    """
    try:
        config = Mask2FormerConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any class, as the library raises it for values of other types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"config.json cannot be read: {reason}") from error
    if config.model_type != "mask2former":
        raise ValueError(f"config.json is of model_type={config.model_type!r}, not mask2former")
    fixed = _FIXED | dict.fromkeys(("feature_size", "mask_feature_size"), config.hidden_dim)
    for name, value in fixed.items():
        if getattr(config, name, value) != value:
            raise ValueError(
                f"config.json: {name}={getattr(config, name)}, but this network has {value}"
            )
    body: Any = config.backbone_config
    heads = config.num_attention_heads
    return ModelSettings(
        backbone=_family(body),
        backbone_config=_differences(body),
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


def _family(body: PreTrainedConfig) -> str:
    kind = getattr(body, "model_type", None)
    if kind not in BACKBONES or len(getattr(body, "depths", STRIDES)) != len(STRIDES):
        raise ValueError(f"config.json: a backbone of model_type={kind!r} is not supported")
    return str(kind)


def _differences(body: PreTrainedConfig) -> dict[str, object]:
    """Return the fields of a backbone that differ from what its family has here by default."""
    family, architecture = BACKBONES[body.model_type]
    usual = family.config(**architecture)
    known = [key for key in family.config.__annotations__ if not key.startswith("_")]
    fields = {key: getattr(body, key) for key in known if key not in _OWN and hasattr(body, key)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in fields.items()
        if value != getattr(usual, key, None)
    }
