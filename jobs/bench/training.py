"""A whole training step on one device, as the worker of a run takes it, on a random batch."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench import step
from model import heads
from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings
from pipeline.data.settings import DataSettings
from pipeline.data.split import BatchSplit
from pipeline.distributed import rank_device
from pipeline.settings import BatchSettings, RunSettings, ZeroSettings
from pipeline.step.assemble import engine_of
from pipeline.step.engine import Engine, Update
from pipeline.step.step import TrainingStep


def training(
    settings: ModelSettings,
    criterion: CriterionSettings,
    batch: int,
    size: int,
    device: torch.device,
    *,
    zero_stage: int = 0,
) -> Callable[[], Update]:
    """Return a function that takes one optimizer step, the copy of the batch included.

    The network is compiled on a GPU, as it is in a run.

    Args:
        settings: The architecture.
        criterion: Settings of the losses.
        batch: Images of a step, all in one micro-batch.
        size: Height and width of the images.
        device: Where to train.
        zero_stage: DeepSpeed's ZeRO stage.
    """
    join_a_group_of_one(device)
    run_settings = RunSettings(
        seed=step.SEED,
        data=DataSettings(crop=size),
        batch=BatchSettings(batch, batch),
        model=settings,
        criterion=criterion,
        zero=ZeroSettings(zero_stage),
    )
    split = BatchSplit(batch, batch)
    train_step, engine = prepared(run_settings, step.CLASSES, split, device)
    on_host = step.random_batch(torch.device("cpu"), batch, size)
    if device.type == "cuda":
        targets = type(on_host.targets)(*(part.pin_memory() for part in on_host.targets))
        on_host = on_host._replace(images=on_host.images.pin_memory(), targets=targets)

    def run() -> Update:
        received = train_step.receive(iter([on_host]))
        train_step.forward_backward(received)
        return engine.step(1.0)

    return run


def prepared(
    settings: RunSettings, classes: int, split: BatchSplit, device: torch.device
) -> tuple[TrainingStep, Engine]:
    """Return the training step of a run and its engine, with random weights.

    Args:
        settings: The settings of the run.
        classes: Number of classes.
        split: This rank's part of every global batch.
        device: Where to train.
    """
    torch.manual_seed(settings.seed)
    without_weights = replace(settings.model, weights="none", init_from="none")
    model = heads.build(without_weights, classes).train()
    if device.type == "cuda":
        rank_device()
    engine = engine_of(model, settings, split, device)
    train_step = TrainingStep(
        engine,
        settings.criterion,
        queries=settings.model.queries,
        seed=settings.seed,
        split=split,
        device=device,
    )
    return train_step, engine


def join_a_group_of_one(device: torch.device) -> None:
    """Initialize a process group of this process alone, unless there is a group."""
    if dist.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    store = Path(tempfile.mkdtemp()) / "store"
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)


def flops_per_image(settings: ModelSettings, size: int, device: torch.device) -> float:
    """Count the floating-point operations of forward and backward, recomputation excluded.

    Matrix products, convolutions, and attention count; the criterion does not.
    """
    model = Mask2Former(settings, step.CLASSES).train().to(device)
    images = torch.zeros(1, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        predictions = model(images)
        torch.stack([part.float().sum() for part in predictions]).sum().backward()
    return counter.get_total_flops()
