"""Small networks and targets for the tests of the model."""

import torch
from torch import Tensor

from model.mask2former import ModelSettings
from model.masked_decoder import MaskedDecoderSettings, Predictions
from model.pixel_decoder import PixelDecoderSettings
from model.targets import Targets
from pipeline.data.keyed import keyed_uniform

# A small architecture of each family of backbones.
TINY_BACKBONES = {
    "resnet": {
        "layer_type": "basic",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
    },
    "swin": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
    "swinv2": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        "image_size": 256,
    },
    "convnext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "dinov2_vit": {
        "hidden_size": 64,
        "mlp_ratio": 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "image_size": 64,
    },
    "dinov3_vit": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    },
}


def tiny_settings(**changes) -> ModelSettings:
    """Return a network of 0.5 M parameters: a ResNet with GroupNorm, 64 channels, 4 predictions."""
    fields = {
        "backbone": "resnet",
        "backbone_config": TINY_BACKBONES["resnet"],
        "norm": "group",
        "queries": 16,
        "dim": 64,
        "pixel_decoder": PixelDecoderSettings(layers=1, feedforward=64),
        "masked_decoder": MaskedDecoderSettings(layers=3, feedforward=64),
    }
    return ModelSettings(**(fields | changes))


def keyed_draw(offset: int = 0, dtype: torch.dtype = torch.float32):
    """Return a `Draw` keyed by image, purpose, and shape; images are counted from `offset`."""

    def draw(image: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return keyed_uniform(shape, image + offset, purpose).to(dtype)

    return draw


def boxes(
    size: tuple[int, int], counts: list[int], classes: int, seed: int = 0, layers: int = 2
) -> Targets:
    """Return random boxes as targets; they are spread over layers and cover earlier ones."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    most = max(counts)
    maps = torch.zeros(len(counts), layers, height, width, dtype=torch.uint8)
    categories = torch.full((len(counts), most), -1)
    layer = torch.zeros(len(counts), most, dtype=torch.long)
    value = torch.zeros(len(counts), most, dtype=torch.long)
    for b, count in enumerate(counts):
        for n in range(count):
            top, left = (
                int(torch.randint(0, limit // 2, (), generator=generator)) for limit in size
            )
            layer[b, n], value[b, n] = n % layers, n + 1
            maps[b, n % layers, top : top + height // 2, left : left + width // 2] = n + 1
            categories[b, n] = torch.randint(0, classes, (), generator=generator)
    return Targets(maps, categories, layer, value)


def random_predictions(
    layers: int, batch: int, queries: int, classes: int, dim: int, size: tuple[int, int]
) -> Predictions:
    """Return random predictions in float64, all of which require gradients."""
    generator = torch.Generator().manual_seed(7)
    shapes = (
        (layers, batch, queries, classes + 1),
        (layers, batch, queries, dim),
        (batch, dim, *size),
    )
    return Predictions(
        *(
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in shapes
        )
    )
