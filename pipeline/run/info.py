"""The facts about a run that its records depend on."""

from dataclasses import dataclass
from typing import Any

from pipeline.run.settings import CheckpointSettings
from pipeline.settings import WandbSettings
from shards.format.taxonomy import Taxonomy


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that its records depend on.

    Attributes:
        name: Name of the run.
        task: The task whose score decides which checkpoint is the best one.
        launch: Identifier of the user's command; the restarts of one command share it.
        order: Identity of the sample order.
        data: The fingerprint of each training set by its location.
        taxonomy: The classes.
        zero_stage: ZeRO stage.
        checkpoint: When checkpoints are written, and the number that is kept.
        max_damaged: Largest number of damaged samples that the run allows.
        wandb: How Weights & Biases is used.
        settings: The settings of the run, a dataclass, for Weights & Biases.
    """

    name: str
    task: str
    launch: str
    order: dict[str, Any]
    data: dict[str, str]
    taxonomy: Taxonomy
    zero_stage: int
    checkpoint: CheckpointSettings
    max_damaged: int
    wandb: WandbSettings
    settings: Any
