"""The networks that `model.head` names."""

from collections.abc import Callable

from model.eomt import Eomt
from model.mask2former import Mask2Former
from model.network import Network
from model.network_settings import ModelSettings

HEADS: dict[str, Callable[[ModelSettings, int], Network]] = {
    "mask2former": Mask2Former,
    "eomt": Eomt,
}


def build(settings: ModelSettings, num_classes: int) -> Network:
    """Return the network of the settings, with its initial weights.

    Raises:
        ValueError: The network cannot be built. The text names the setting.
    """
    return HEADS[settings.head](settings, num_classes)
