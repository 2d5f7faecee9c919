"""An image with its classes, true and predicted, for viewers that draw them."""

from typing import NamedTuple

import numpy as np


class Picture(NamedTuple):
    """An image, RGB `uint8 [H, W, 3]`, and two maps `[H, W]`: c + 1 for class c, 0 for none."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
