"""The network of a run and its engine, with their first weights."""

import torch

from model.heads import build
from pipeline.data.split import BatchSplit
from pipeline.run.journal import Journal
from pipeline.run.restore import initialize, initialize_backbone
from pipeline.settings import RunSettings
from pipeline.step.assemble import engine_of
from pipeline.step.engine import Engine
from shards.format.taxonomy import Taxonomy


def build_engine(
    settings: RunSettings,
    journal: Journal,
    taxonomy: Taxonomy,
    split: BatchSplit,
    device: torch.device,
) -> Engine:
    """Build the network, with its initial weights if the run starts from scratch.

    Args:
        settings: The settings of the run.
        journal: Its records, which know whether there is a checkpoint.
        taxonomy: The classes.
        split: This rank's part of every global batch.
        device: Where the network is put.
    """
    torch.manual_seed(settings.seed)
    model = build(settings.model, len(taxonomy))
    if journal.checkpoint is None and settings.model.init_from != "none":
        journal.event(initialize(model, settings.model.init_from, settings.task, taxonomy))
    elif journal.checkpoint is None and settings.model.weights_file != "none":
        journal.event(initialize_backbone(model, settings.model.weights_file))
    return engine_of(model, settings, split, device)
