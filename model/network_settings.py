"""Settings of the network, the criterion, and the segmentations.

They live apart from the code that they configure, so that a command reads and checks its settings
without importing torch or transformers, which takes seconds.
"""
# ruff: noqa: RUF009 (`setting` returns a dataclasses.field, so that no default is shared)

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.settings import SettingError, Settings, setting

BACKBONE_NAMES = (
    "resnet",
    "resnet50",
    "resnet101",
    "swin",
    "swin_tiny",
    "swin_small",
    "swin_base",
    "swin_large",
    "swinv2",
    "swinv2_tiny",
    "swinv2_small",
    "swinv2_base",
    "convnext",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "dinov2_vit",
    "dinov2_vit_large",
    "dinov3_vit",
    "dinov3_vit_small",
    "dinov3_vit_base",
    "dinov3_vit_large",
)
HEADS = ("mask2former", "eomt")  # of `model.heads`
WEIGHT_FILES = (".pth", ".pt", ".pkl", ".bin", ".safetensors")
NORMS = ("frozen_batch", "batch", "sync_batch", "group")  # of a ResNet; others have their own


@dataclass
class PixelDecoderSettings(Settings):
    """Sizes and precision of the deformable encoder."""

    layers: int = setting(6, "Number of encoder layers.", at_least=1)
    heads: int = setting(8, "Number of attention heads, which divides model.dim.", at_least=1)
    points: int = setting(4, "Sampling points per head and level.", at_least=1)
    feedforward: int = setting(1024, "Hidden channels of the feed-forward blocks.", at_least=1)
    dtype: str = setting(
        "bf16",
        "Precision under autocast: bf16 takes part in it, except for coordinates, softmax, and the "
        "sums of deformable attention; fp32 leaves autocast, as published.",
        choices=("bf16", "fp32"),
    )


@dataclass
class MaskedDecoderSettings(Settings):
    """Sizes of the transformer decoder."""

    layers: int = setting(
        9, "Number of decoder layers, which make one prediction more than their number.", at_least=1
    )
    heads: int = setting(8, "Number of attention heads, which divides model.dim.", at_least=1)
    feedforward: int = setting(2048, "Hidden channels of the feed-forward blocks.", at_least=1)


@dataclass
class EomtSettings(Settings):
    """The encoder-only mask transformer."""

    blocks: int = setting(
        4, "Number of the last blocks of the ViT that process the queries, too.", at_least=1
    )
    anneal_start: float = setting(
        1 / 6,
        "Fraction of all steps until which the first of these blocks masks the attention of all "
        "queries; the starts of the others follow at equal distances.",
        at_least=0,
        below=1,
    )
    anneal_span: float = setting(
        1 / 6,
        "Fraction of all steps in which the masks of a block fade out.",
        above=0,
        at_most=1,
    )
    anneal_end: float = setting(
        5 / 6,
        "Fraction of all steps from which the last block masks no query.",
        above=0,
        at_most=1,
    )
    anneal_power: float = setting(
        0.9,
        "Exponent of the share of masked queries, (1 - t)^anneal_power, as t rises from 0 to 1 "
        "in the span of a block.",
        above=0,
    )

    def check(self) -> None:
        """Check that the span of the first block does not end after that of the last one."""
        if self.anneal_start + self.anneal_span > self.anneal_end:
            what = f"={self.anneal_span:g} does not fit between anneal_start and anneal_end"
            raise SettingError("anneal_span", what, "lower it")


@dataclass
class ModelSettings(Settings):
    """Architecture of the network and where its weights come from."""

    backbone: str = setting(
        "resnet50",
        "Architecture of the backbone; the names without a size take it from backbone_config.",
        choices=BACKBONE_NAMES,
    )
    backbone_config: dict[str, Any] = setting(
        {}, "Fields of the backbone's transformers config that differ from the named architecture."
    )
    norm: str = setting(
        "frozen_batch",
        "Normalization layers of a ResNet; other backbones have their own.",
        choices=NORMS,
    )
    weights: str = setting(
        "none",
        "Pretrained weights of the backbone: a folder of transformers, or a file (.pth, .pkl, "
        ".safetensors) with the names of torchvision or of the paper's code; none for random ones.",
    )
    drop_path: float = setting(
        0.3,
        "Rate of stochastic depth in the last block of a backbone that is not a ResNet; it grows "
        "linearly from 0 in the first block.",
        at_least=0,
        below=1,
    )
    init_from: str = setting(
        "none",
        "Run, folder, or file of weights that the whole network or its backbone starts from, "
        "instead of model.weights.",
    )
    freeze: list[str] = setting(
        [],
        "Parts whose weights are not trained: backbone (without the norms and the pyramid that "
        "only a decoder needs), backbone.stem, backbone.stages.0, backbone.stages.2.blocks.1, "
        "backbone.blocks.0 of a ViT, neck (these norms, this pyramid), pixel_decoder, "
        "masked_decoder.",
    )
    head: str = setting(
        "mask2former",
        "What predicts masks from the backbone: mask2former, with a pixel decoder and a "
        "transformer decoder; eomt, the last blocks of a plain ViT (dinov2 or dinov3).",
        choices=HEADS,
    )
    queries: int = setting(100, "Number of queries, the most segments per image.", at_least=1)
    dim: int = setting(256, "Channels of both decoders.", at_least=8, multiple_of=8)
    checkpoint_activations: bool = setting(
        False,
        "Keep only the inputs of each decoder layer and run the layer again in backward, which "
        "takes less memory and gives the same gradients.",
    )
    compile: bool | None = setting(
        None,
        "Train with the blocks of the network run through torch.compile, for images of one size; "
        "null does so on a GPU, unless zero.stage=3.",
    )
    pixel_decoder: PixelDecoderSettings = setting(
        PixelDecoderSettings, "Sizes of the pixel decoder."
    )
    masked_decoder: MaskedDecoderSettings = setting(
        MaskedDecoderSettings, "Sizes of the transformer decoder."
    )
    eomt: EomtSettings = setting(EomtSettings, "The head eomt.")

    @property
    def weights_folder(self) -> str:
        """The folder of `weights`, which the network is built from, or "none"."""
        replaced = self.init_from != "none" or Path(self.weights).suffix in WEIGHT_FILES
        return "none" if replaced else self.weights

    @property
    def weights_file(self) -> str:
        """The file of `weights`, which is loaded after the network is built, or "none"."""
        return "none" if self.init_from != "none" or self.weights_folder != "none" else self.weights

    def check(self) -> None:
        """Check the heads, the norms of the backbone, and that frozen norms do not change."""
        if self.head == "eomt" and not self.backbone.startswith("dino"):
            fix = "choose a plain ViT, such as dinov3_vit_base"
            raise SettingError("backbone", f"={self.backbone} with head=eomt", fix)
        for part in ("pixel_decoder", "masked_decoder"):
            heads = getattr(self, part).heads
            if self.dim % heads:
                raise SettingError(f"{part}.heads", f"={heads}", f"it must divide dim={self.dim}")
        if self.norm != NORMS[0] and not self.backbone.startswith("resnet"):
            raise SettingError(
                "norm", f"={self.norm} is for ResNets", f"leave it out for {self.backbone}"
            )
        freezes_backbone = any(name.startswith("backbone") for name in self.freeze)
        if freezes_backbone and self.norm in ("batch", "sync_batch"):
            raise SettingError(
                "freeze",
                f"={self.freeze} with norm={self.norm}: the statistics of the frozen layers would "
                "change",
                "write model.norm=frozen_batch, or freeze nothing of the backbone",
            )


@dataclass
class CriterionSettings(Settings):
    """Weights of matching costs and losses, and the points that masks are compared at."""

    class_weight: float = setting(
        2.0, "Weight of the classification in the matching cost and in the loss.", at_least=0
    )
    mask_weight: float = setting(
        5.0, "Weight of the mask cross entropy in the matching cost and in the loss.", at_least=0
    )
    dice_weight: float = setting(
        5.0, "Weight of the dice term in the matching cost and in the loss.", at_least=0
    )
    no_object_weight: float = setting(
        0.1, 'Class weight of "no object" in the cross entropy of the classes.', at_least=0
    )
    points: int = setting(
        12544, "Points per mask in the matching cost and in the loss.", at_least=1
    )
    oversample: float = setting(
        3.0, "Candidates drawn per point to find the most uncertain ones.", at_least=1
    )
    importance: float = setting(
        0.75, "Share of the points of the loss that are uncertain ones.", at_least=0, at_most=1
    )
    ignore_void: bool = setting(
        False,
        "Leave pixels that belong to no segment out of the matching and of the mask losses, with "
        "the points beside them. Not for task=instance, where such pixels are background.",
    )
    class_normalizer: str = setting(
        "global",
        "What the class loss is divided by: global uses the class weights of the whole batch; "
        "local uses those of each micro-batch and averages micro-batches; groups uses those of "
        "each group of class_group images and averages groups, as the paper's code does.",
        choices=("global", "local", "groups"),
    )
    class_group: int = setting(
        2,
        "Consecutive images of a batch that form a group, whatever batch.micro is (groups); in the "
        "paper's code, the images of a GPU.",
        unit="images",
        at_least=1,
    )


@dataclass
class SegmentSettings(Settings):
    """Thresholds of the panoptic merge, and the number of instances per image."""

    object_threshold: float = setting(
        0.8,
        "Least class probability of a query that the panoptic merge keeps.",
        at_least=0,
        at_most=1,
    )
    overlap_threshold: float = setting(
        0.8,
        "Least share of its mask that a query must win to become a panoptic segment.",
        at_least=0,
        at_most=1,
    )
    detections: int = setting(100, "Number of instances reported per image.", at_least=1)
