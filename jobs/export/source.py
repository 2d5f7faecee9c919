"""What is exported."""

from typing import NamedTuple

from jobs.config import Config
from model.network import Network
from shards.format.taxonomy import Taxonomy


class Source(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        model: The network, whose classes are in the order of the taxonomy.
        config: The run's settings.
        taxonomy: The classes.
        task: The task of an exported program.
        step: The step of the checkpoint.
    """

    model: Network
    config: Config
    taxonomy: Taxonomy
    task: str
    step: int
