"""Measure a training step of a config on its own data, in this process."""

import time

import torch

from jobs import config as configs
from model.heads import build
from pipeline.data.split import BatchSplit
from pipeline.data.training import TrainingData
from pipeline.step.step import PlainNetwork, TrainingStep

STEPS = 3  # that are timed, after one that warms up


def step_seconds(preset: str, overrides: list[str]) -> float:
    """Return the seconds of a training step, with its data and without the optimizer.

    One process takes the whole batch with all cores. That takes about as long as the workers, which
    share the batch and the cores.

    Args:
        preset: The name of a preset.
        overrides: Settings as `key=value`.

    Raises:
        UsageError: The config is wrong.
        DataError: The data is damaged.
    """
    config = configs.load(preset, [*overrides, "data.loader_workers=0"])
    device = torch.device("cuda" if config.scaling.gpu else "cpu")
    workers = config.scaling.workers or 1
    size = config.batch.size // workers if config.scaling.gpu else config.batch.size
    split = BatchSplit(size, config.batch.micro)
    data = TrainingData(config.data, config.task, config.seed)
    batches = iter(data.batches(0, split, pin_memory=False))
    model = build(config.model, len(data.taxonomy)).train().to(device)
    step = TrainingStep(
        PlainNetwork(model, device),
        config.criterion,
        queries=config.model.queries,
        seed=config.seed,
        split=split,
        device=device,
    )
    for n in range(STEPS + 1):
        if n == 1:
            begin = time.perf_counter()
        step.forward_backward(step.receive(batches))
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / STEPS
