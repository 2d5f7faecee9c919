"""The engine that trains a network by the settings of a run."""

import torch

from model.network import Network
from pipeline.data.split import BatchSplit
from pipeline.settings import RunSettings
from pipeline.step.engine import Engine
from pipeline.step.optimizer import parameter_groups


def engine_of(
    model: Network, settings: RunSettings, split: BatchSplit, device: torch.device
) -> Engine:
    """Return the engine of a network, which is compiled if the settings or the device ask for it.

    Args:
        model: The network with its first weights.
        settings: The settings of the run.
        split: This rank's part of every global batch.
        device: Where the network is put.
    """
    compiled = settings.model.compile
    if compiled is None:
        compiled = device.type == "cuda" and settings.zero.stage < 3
    if compiled:
        model.compile_blocks()
    engine = Engine(
        model.to(device),
        parameter_groups(model, settings.optimizer),
        zero=settings.zero,
        clip=settings.optimizer.clip,
        ema=settings.optimizer.ema,
        micro_steps=split.micro_steps,
        device=device,
    )
    if compiled:
        engine.record((split.sizes[0], 3, *settings.data.crop_size))
    return engine
