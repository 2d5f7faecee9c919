"""Short trainings whose losses depend on nothing but the code, torch, and the CPU."""

from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn

from model.criterion import Criterion, CriterionSettings, normalizers
from model.mask2former import Mask2Former, ModelSettings, normalize
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from pipeline.data.keyed import keyed_uniform
from tests.model.samples import boxes

STEPS = 20
CLASSES = 5
PRESET = Path(__file__).parents[2] / "jobs/presets/tiny.yaml"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PRECISIONS = {"tiny": ("float32", "float64"), "r50": ("float32",)}  # recorded for each case


class Case(NamedTuple):
    """A network, its loss, and the sizes of its one batch of random images."""

    model: ModelSettings
    criterion: CriterionSettings
    side: int  # pixels
    counts: list[int]  # segments of each image
    lr: float


def cases() -> dict[str, Case]:
    """Return the network of the preset `tiny`, and an R50 with every size at its default."""
    preset = yaml.safe_load(PRESET.read_text())
    fields = dict(preset["model"])
    fields["pixel_decoder"] = PixelDecoderSettings(**fields["pixel_decoder"])
    fields["masked_decoder"] = MaskedDecoderSettings(**fields["masked_decoder"])
    criterion = CriterionSettings(**preset["criterion"])
    return {
        "tiny": Case(ModelSettings(**fields), criterion, 96, [5, 0, 3, 2], 1e-4),
        "r50": Case(ModelSettings(), CriterionSettings(points=1024), 64, [4], 1e-5),
    }


def train(name: str, dtype: torch.dtype) -> list[float]:
    """Return the loss of every step.

    The network is initialized and trained in `dtype`. All steps see the same images; their random
    draws are keyed by step, image, and purpose.
    """
    case = cases()[name]
    net = _network(case.model, dtype)
    criterion = Criterion(case.criterion)
    optimizer = torch.optim.AdamW(net.parameters(), lr=case.lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(1)
    shape = (len(case.counts), 3, case.side, case.side)
    images = normalize(torch.randint(256, shape, dtype=torch.uint8, generator=generator)).to(dtype)
    targets = boxes((case.side, case.side), case.counts, CLASSES)
    totals = normalizers(targets.categories, case.model.queries, case.criterion)
    losses = []
    for step in range(STEPS):

        def draw(image: int, purpose: str, shape: tuple[int, ...], step: int = step) -> Tensor:
            return keyed_uniform(shape, step, image, purpose)

        terms = criterion(net(images, draw), targets, draw, totals)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _network(settings: ModelSettings, dtype: torch.dtype) -> Mask2Former:
    """Return a network whose sampling points lie between the centers of pixels.

    They start at the centers, where bilinear sampling has two slopes, and rounding would choose
    between these.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        net = Mask2Former(settings, CLASSES)
    finally:
        torch.set_default_dtype(before)
    for layer in net.pixel_decoder.layers:
        bias = layer.self_attn.sampling_offsets.bias
        bias.data += torch.rand(bias.shape) / 2 + 0.25
    return net.to(dtype)
