"""One training step of R50 compared with transformers: same weights, inputs, and random numbers.

On a CPU the batch is one image of 512 x 512 pixels in float32; on a GPU it is eight of 1024 x 1024
under bfloat16 autocast, and images per second and host synchronizations are measured too. The step
is that of a training run (`TrainingStep`) without DeepSpeed. The peer (transformers) trains with
batch norms in eval mode, because ours are frozen. Saved bytes are the size of the storages that
autograd keeps for backward, each counted once, without parameters, buffers, and images. Peak memory
is what a step adds to the GPU allocator, or the peak resident set of a process that builds both
models and steps one.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from jobs.bench import alternate, peak_mib, row
from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings, normalize
from model.targets import Targets
from model.weights.export import transformers_config, transformers_state
from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.step.draws import Draws
from pipeline.step.step import PlainNetwork, TrainingStep, sum_of

CLASSES, MASKS, SEED = 133, 20, 0
SETTINGS = ModelSettings(drop_path=0)
AIMS = {
    "cpu": {"time": "<= 0.6x", "saved_bytes": "<= 0.45x"},
    "cuda": {"peak_memory": "<= 0.4x", "host_syncs": "<= 2", "rate": ">= 3x"},
}


class Side(NamedTuple):
    """A network, and the function that returns its loss of the batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


def rows() -> list[dict]:
    """Return the rows of the benchmark: time, memory, and loss, and on a GPU rate and syncs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = random_batch(device)
    images = batch.images
    sides = build(SETTINGS, CriterionSettings(), batch)
    difference = loss_difference(sides, CriterionSettings(), batch)
    seconds = measure_seconds(sides, device)
    measured = [(part, "s", values) for part, values in seconds.items()]
    measured.append(("saved_bytes", "MiB", {n: saved_bytes(s, images) for n, s in sides.items()}))
    if device.type == "cuda":
        rate = {name: len(images) / taken for name, taken in seconds["time"].items()}
        measured.append(("rate", "images/s", rate))
        measured.append(
            ("host_syncs", "syncs", {n: len(syncs_of(partial(step, s))) for n, s in sides.items()})
        )
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


def random_batch(
    device: torch.device, batch: int = 0, size: int = 0, width: int = 0, classes: int = CLASSES
) -> Batch:
    """Return a batch of random images with 20 random boxes drawn as the truth of each.

    Args:
        device: Where the batch is to be.
        batch: Number of images; 0 takes 8 on a GPU and 1 on a CPU.
        size: Height and width; 0 takes 1024 on a GPU and 512 on a CPU.
        width: The width if it is not the height.
        classes: Number of classes.
    """
    on_gpu = device.type == "cuda"
    batch, size = batch or (8 if on_gpu else 1), size or (1024 if on_gpu else 512)
    torch.manual_seed(0)
    maps = torch.zeros(batch, 1, size, width or size, dtype=torch.uint8)
    for image in maps:
        for n in range(MASKS):
            top, left = torch.randint(0, size - min(100, size // 2), (2,)).tolist()
            tall, wide = torch.randint(20, 200, (2,)).tolist()
            image[..., top : top + tall, left : left + wide] = n + 1
    categories = torch.randint(0, classes, (batch, MASKS))
    values = torch.arange(1, MASKS + 1).repeat(batch, 1)
    targets = Targets(maps, categories, torch.zeros_like(values), values)
    images = torch.randint(256, (batch, 3, *maps.shape[2:]), dtype=torch.uint8)
    return batch_of(images, targets).to(device)


def batch_of(images: Tensor, targets: Targets) -> Batch:
    """Return the batch of images uint8 [B, 3, H, W] and their truth; the keys are "0", "1", ..."""
    numbers = range(len(images))
    sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
    keys, epochs = [str(n) for n in numbers], [0 for _ in numbers]
    return Batch(images, targets, sizes, keys, list(numbers), epochs, [])


def build(settings: ModelSettings, criterion: CriterionSettings, batch: Batch) -> dict[str, Side]:
    """Return our side and the peer's, with the same weights."""
    torch.manual_seed(0)
    device, targets = batch.images.device, batch.targets
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
    for model in (ours, peer):
        nn.Module.to(model, device)
    size = len(batch.images)
    step = TrainingStep(
        PlainNetwork(ours, device),
        criterion,
        queries=settings.queries,
        seed=SEED,
        split=BatchSplit(size, size),
        device=device,
    )
    totals = step.receive(iter([batch])).totals
    masks = [
        (maps == value[:, None, None]).float()
        for (maps,), value in zip(targets.maps, targets.value, strict=True)
    ]
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")

    def our_loss() -> Tensor:
        return sum_of(step.losses(batch, totals))

    def peer_loss() -> Tensor:
        with autocast():
            images = normalize(batch.images)
            return peer(images, mask_labels=masks, class_labels=list(targets.categories)).loss

    return {"ours": Side(ours, our_loss), "peer": Side(peer, peer_loss)}


def measure_seconds(sides: dict[str, Side], device: torch.device) -> dict[str, dict[str, float]]:
    """Return the median seconds of "forward" (with the criterion), "backward", and "time" (both).

    Returns:
        {part: {side: seconds}}.
    """
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
    """Run forward, criterion, and backward."""
    side.loss().backward()
    side.model.zero_grad(set_to_none=True)


def one_step(name: str) -> None:
    """Build both sides and run a step of one, in a process whose peak memory is measured."""
    step(build(SETTINGS, CriterionSettings(), random_batch(torch.device("cpu")))[name])


def saved_bytes(side: Side, images: Tensor) -> float:
    """Return the MiB that autograd keeps between forward and backward."""
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
    """Return the MiB of GPU memory that a step takes in addition to what is in use before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(side)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def syncs_of(work: Callable[[], object]) -> list[str]:
    """Return the lines of code at which a function makes the host wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    return [
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "called a synchronizing" in str(warning.message)
    ]


def loss_difference(sides: dict[str, Side], criterion: CriterionSettings, batch: Batch) -> float:
    """Return |our loss - the peer's| / the peer's, with the same random numbers for both."""
    with torch.no_grad():
        ours = sides["ours"].loss()
        with equal_draws(sides["peer"].model, criterion, batch):
            peer = sides["peer"].loss()
    return float((ours - peer).abs() / peer)


@contextmanager
def equal_draws(peer: Any, settings: CriterionSettings, batch: Batch) -> Iterator[None]:
    """Give one step of the peer our random numbers, in the order in which it draws its own.

    The peer starts with the last prediction and sorts the matched pairs of an image by query; we
    start with the first prediction and sort the pairs by target.
    """
    matched: list[list[tuple[Tensor, Tensor]]] = []  # per prediction and image: queries, targets
    hook = peer.criterion.matcher.register_forward_hook(lambda *call: matched.append(call[2]))
    uniform = settings.points - int(settings.importance * settings.points)
    purposes = {"candidates": int(settings.oversample * settings.points), "uniform": uniform}
    our_draw, rand = Draws(SEED, batch), torch.rand

    def draw(image: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        with mock.patch.object(torch, "rand", rand):
            return our_draw(image, purpose, shape)

    def numbers() -> Iterator[Tensor]:
        last = peer.config.decoder_layers - 1
        for i in (last, *range(last)):
            for image in range(len(batch.images)):
                yield draw(image, f"match/{i}", (settings.points, 2))[None]
            for purpose, points in purposes.items():
                yield torch.cat(
                    [
                        draw(image, f"{purpose}/{i}", (len(target), points, 2))[target]
                        for image, (_, target) in enumerate(matched[-1])
                    ]
                )

    stream = numbers()

    def given(shape: Any, *more: Any, **options: Any) -> Tensor:
        if shape == []:  # some versions draw whether to drop a layer
            return rand(shape, **options)
        return next(stream)

    with mock.patch.object(torch, "rand", given):
        yield
    hook.remove()
