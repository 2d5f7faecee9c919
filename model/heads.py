"""The network of the settings."""

from model.mask2former import Mask2Former
from model.network import Network
from model.network_settings import ModelSettings


def build(settings: ModelSettings, num_classes: int) -> Network:
    """Return the network of the settings, with its initial weights.

    Raises:
        ValueError: The network cannot be built. The text names the setting.
    """
    return Mask2Former(settings, num_classes)
