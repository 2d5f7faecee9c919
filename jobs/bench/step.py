"""One training step of R50 beside transformers with the same weights, inputs and draws.

On a CPU one image of 512 pixels in fp32; on a GPU eight of 1024 under bf16 autocast, where images/s
and host syncs are rows too (no figure of a GPU has been published yet). The peer trains with its
BatchNorms in eval(), as ours are frozen. Saved bytes are unique storages that autograd keeps for
backward, without parameters, buffers and inputs. Peak memory is of a model and one step: what the
GPU's allocator says, or the resident set of a process of its own.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from jobs.bench import alternate, peak_mib, row
from model.criterion import Criterion, CriterionSettings, normalizers
from model.mask2former import Mask2Former, ModelSettings
from model.targets import Targets
from model.weights.export import transformers_config, transformers_state
from pipeline.data.keyed import keyed_uniform

CLASSES, MASKS = 133, 20
SETTINGS = ModelSettings(drop_path=0)
AIMS = {
    "cpu": {"time": "<= 0.6x", "saved_bytes": "<= 0.45x"},
    "cuda": {"peak_memory": "<= 0.4x", "host_syncs": "<= 2", "rate": ">= 3x"},
}


class Side(NamedTuple):
    """A network, and its loss of the one batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


def rows() -> list[dict]:
    """Seconds, memory and difference in loss of forward, criterion and backward."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, targets = case(device)
    sides = build(SETTINGS, CriterionSettings(), images, targets)
    difference = loss_difference(sides, CriterionSettings(), len(images))
    seconds = measure_seconds(sides, device)
    measured = [(part, "s", values) for part, values in seconds.items()]
    measured.append(("saved_bytes", "MiB", {n: saved_bytes(s, images) for n, s in sides.items()}))
    if device.type == "cuda":
        rate = {name: len(images) / taken for name, taken in seconds["time"].items()}
        measured.append(("rate", "images/s", rate))
        measured.append(("host_syncs", "syncs", {n: host_syncs(s) for n, s in sides.items()}))
        peak = {name: allocator_peak_mib(side) for name, side in sides.items()}
    else:
        peak = {name: peak_mib(one_step, name) for name in sides}
    measured.append(("peak_memory", "MiB", peak))
    suffix = f"r50_{images.shape[3]}"
    table = [
        row(
            f"step.{name}.{suffix}",
            unit,
            values["ours"],
            peer=values["peer"],
            peer_name="transformers",
            better="higher" if name == "rate" else "lower",
            target=AIMS[device.type].get(name),
        )
        for name, unit, values in measured
    ]
    name, unit = f"step.loss_difference.{suffix}", "of the peer's loss"
    return [*table, row(name, unit, difference, better="lower", target="<= 1e-4")]


def case(device: torch.device) -> tuple[Tensor, Targets]:
    """Random images, and 20 boxes in each."""
    batch, size = (8, 1024) if device.type == "cuda" else (1, 512)
    torch.manual_seed(0)
    maps = torch.zeros(batch, 1, size, size, dtype=torch.uint8)
    for image in maps:
        for n in range(MASKS):
            top, left = torch.randint(0, size - 100, (2,)).tolist()
            height, width = torch.randint(20, 200, (2,)).tolist()
            image[..., top : top + height, left : left + width] = n + 1
    categories = torch.randint(0, CLASSES, (batch, MASKS))
    values = torch.arange(1, MASKS + 1).expand(batch, MASKS)
    targets = Targets(maps, categories, torch.zeros_like(values), values)
    images = torch.randn(batch, 3, size, size, device=device)
    return images, targets.to(device)


def build(
    settings: ModelSettings, criterion: CriterionSettings, images: Tensor, targets: Targets
) -> dict[str, Side]:
    """Ours and the peer, with the same weights."""
    torch.manual_seed(0)
    device = images.device
    ours = Mask2Former(settings, CLASSES).train()
    labels = [str(i) for i in range(CLASSES)]
    peer = Mask2FormerForUniversalSegmentation(
        transformers_config(ours, settings, criterion, labels)
    )
    peer.load_state_dict(transformers_state(ours, criterion, peer))
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    ours, peer = ours.to(device), peer.to(device)
    total = normalizers(targets.categories, settings.queries, criterion)
    masks = [
        (maps == value[:, None, None]).float()
        for (maps,), value in zip(targets.maps, targets.value, strict=True)
    ]

    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")

    def our_loss() -> Tensor:
        with autocast():
            predictions = ours(images)
        losses = Criterion(criterion)(predictions, targets, partial(keyed, device), total)
        return torch.stack(list(losses.values())).sum()

    def peer_loss() -> Tensor:
        with autocast():
            return peer(images, mask_labels=masks, class_labels=list(targets.categories)).loss

    return {"ours": Side(ours, our_loss), "peer": Side(peer, peer_loss)}


def keyed(device: torch.device, image: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers that follow from image and purpose, as those of a training run do."""
    return keyed_uniform(shape, image, purpose, device=device)


def measure_seconds(sides: dict[str, Side], device: torch.device) -> dict[str, dict[str, float]]:
    """Medians of {"forward" (with the criterion), "backward", "time" (both): {side: seconds}}."""
    taken = {name: {"forward": [], "backward": [], "time": []} for name in sides}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def turn(name: str) -> None:
        start = now()
        loss = sides[name].loss()
        middle = now()
        loss.backward()
        end = now()
        sides[name].model.zero_grad(set_to_none=True)
        parts = {"forward": middle - start, "backward": end - middle, "time": end - start}
        for part, seconds in parts.items():
            taken[name][part].append(seconds)

    alternate({name: partial(turn, name) for name in sides})
    return {
        part: {name: statistics.median(taken[name][part][1:]) for name in sides}  # [0] warms up
        for part in ("forward", "backward", "time")
    }


def step(side: Side) -> None:
    """Forward, criterion and backward."""
    side.loss().backward()
    side.model.zero_grad(set_to_none=True)


def one_step(name: str) -> None:
    """A step of one side alone, for the memory of a process of its own."""
    images, targets = case(torch.device("cpu"))
    step(build(SETTINGS, CriterionSettings(), images, targets)[name])


def saved_bytes(side: Side, images: Tensor) -> float:
    """MiB that autograd keeps between forward and backward."""
    constants = (*side.model.parameters(), *side.model.buffers(), images)
    given = {x.untyped_storage().data_ptr() for x in constants}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.loss()
    return sum(storage.nbytes() for storage in kept.values()) / 2**20


def allocator_peak_mib(side: Side) -> float:
    """MiB of the GPU that a step takes beside what was there before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(side)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def host_syncs(side: Side) -> float:
    """How often a step waits for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step(side)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


def loss_difference(sides: dict[str, Side], criterion: CriterionSettings, batch: int) -> float:
    """|our loss - the peer's| / the peer's, when both are given the same random numbers."""
    with torch.no_grad(), equal_draws(sides["peer"].model, criterion, batch):
        ours, peer = sides["ours"].loss(), sides["peer"].loss()
    return float((ours - peer).abs() / peer)


@contextmanager
def equal_draws(
    peer: Mask2FormerForUniversalSegmentation, settings: CriterionSettings, batch: int
) -> Iterator[None]:
    """Within, the one step of the peer is given the numbers of `keyed` where it draws its own.

    It takes the last prediction first, and sorts an image's pairs by query where we do by target.
    """
    matched: list[list[tuple[Tensor, Tensor]]] = []  # for each image its queries and its targets
    hook = peer.criterion.matcher.register_forward_hook(lambda *call: matched.append(call[2]))
    uniform = settings.points - int(settings.importance * settings.points)
    purposes = {"candidates": int(settings.oversample * settings.points), "uniform": uniform}

    def numbers() -> Iterator[Tensor]:
        last = peer.config.decoder_layers - 1
        for i in (last, *range(last)):
            for image in range(batch):
                yield keyed(peer.device, image, f"match/{i}", (settings.points, 2))[None]
            for purpose, points in purposes.items():
                yield torch.cat(
                    [
                        keyed(peer.device, b, f"{purpose}/{i}", (len(target), points, 2))[target]
                        for b, (_, target) in enumerate(matched[-1])
                    ]
                )

    with mock.patch.object(torch, "rand", side_effect=numbers()):
        yield
    hook.remove()
