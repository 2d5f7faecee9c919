"""Networks from checkpoints: the network of a run, and the initial weights of another."""

import dataclasses
from pathlib import Path

import torch

from model.heads import build
from model.network import Network
from model.network_settings import ModelSettings
from model.weights.load import load, load_backbone, network_weights
from pipeline.run import checkpoint, events
from pipeline.run.class_match import match_classes
from pipeline.run.folder import CHECKPOINTS, choose_checkpoint
from pipeline.run.pull import weights_of
from shards.errors import UsageError
from shards.files import is_url
from shards.format.taxonomy import Taxonomy


def load_model(
    settings: ModelSettings, task: str, folder: Path, which: str | None, device: torch.device
) -> tuple[Network, Taxonomy, int]:
    """Load the network of a run.

    Args:
        settings: The network's settings.
        task: The task whose score decides which checkpoint is the best one.
        folder: The run folder.
        which: "best", "last", or a step; see `choose_checkpoint`.
        device: Where the network is put.

    Returns:
        The network in eval mode, its label space, and the checkpoint's step.

    Raises:
        UsageError: The run has no such checkpoint, its bytes are not as written, or it does not fit
            the settings.
    """
    path = choose_checkpoint(folder, which, task)
    if problem := checkpoint.damage(path):
        raise checkpoint.damaged(path, problem)
    state, trainer = checkpoint.load(path)
    bare = dataclasses.replace(settings, weights="none")
    model = build(bare, len(trainer.taxonomy))
    try:
        model.load_state_dict(network_weights(state))
    except RuntimeError as error:
        raise UsageError(
            "the checkpoint does not fit the model in config.yaml",
            where=path,
            fix="restore config.yaml as the run was started with it",
        ) from error
    return model.to(device).eval(), trainer.taxonomy, trainer.progress.step


def initial_weights(init_from: str, task: str) -> Path:
    """Return the file or folder that `model.init_from` names: of a run, its best checkpoint.

    Raises:
        UsageError: The run has no checkpoint, or its bytes are not as written.
        Failed: The storage of the run does not answer.
    """
    path = weights_of(init_from, task) if is_url(init_from) else Path(init_from)
    if (path / CHECKPOINTS).is_dir():
        path = choose_checkpoint(path, None, task)
    if (path / checkpoint.MANIFEST).is_file() and (problem := checkpoint.damage(path)):
        raise UsageError(
            f"the checkpoint is damaged ({problem})",
            where=f"model.init_from={path}",
            fix="name another",
        )
    return path


def initialize(model: Network, init_from: str, task: str, taxonomy: Taxonomy) -> events.InitFrom:
    """Load the weights that `model.init_from` names into a new network for the classes of the data.

    Returns:
        The event that lists the parameters that were not found and the tensors that do not fit, and
        says how the classes were matched.

    Raises:
        UsageError: There are no such weights.
        ValueError: They do not fit the network.
    """
    path = initial_weights(init_from, task)
    loaded = load(model, path, match_classes(taxonomy, path))
    return events.InitFrom(
        path=str(path), text=str(loaded), fresh=loaded.fresh, unused=loaded.unused
    )


def initialize_backbone(model: Network, path: str) -> events.InitFrom:
    """Load the file of `model.weights` into the backbone of a new network.

    Returns:
        The event that lists the parameters that were not found and the tensors that do not fit.

    Raises:
        ValueError: The file cannot be read or does not fit.
    """
    loaded = load_backbone(model, path)
    return events.InitFrom(
        key="model.weights",
        path=path,
        text=str(loaded),
        fresh=[name for name in loaded.fresh if name.startswith("backbone.")],
        unused=loaded.unused,
    )
