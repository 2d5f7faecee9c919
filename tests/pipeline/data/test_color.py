"""The color jitter compared with the published steps, written channel by channel in BGR."""

import cv2
import numpy as np
import pytest

from pipeline.data.augment.color import jitter_color


class Draws:
    """A generator that records the name, the range, and the value of every draw."""

    def __init__(self, seed: int):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def random(self):
        self.drawn.append(("coin", self.rng.random()))
        return self.drawn[-1][1]

    def uniform(self, low, high):
        self.drawn.append((f"uniform {low} {high}", self.rng.uniform(low, high)))
        return self.drawn[-1][1]

    def integers(self, low, high):
        self.drawn.append((f"integers {low} {high}", int(self.rng.integers(low, high))))
        return self.drawn[-1][1]


def published(rgb: np.ndarray, drawn: list) -> tuple[np.ndarray, str]:
    """Apply the reference's steps in its channel order; remove the draws it uses from `drawn`."""
    image, done = rgb[..., ::-1], ""

    def take(name):
        kind, value = drawn.pop(0)
        assert kind == name
        return value

    def converted(values, alpha=1.0, beta=0.0):
        values = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
        return np.clip(values, 0, 255).astype(np.uint8)

    def contrast(bgr):
        return converted(bgr, alpha=take("uniform 0.5 1.5"))

    def saturation(bgr):
        hsv = cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2HSV)
        hsv[..., 1] = converted(hsv[..., 1], alpha=take("uniform 0.5 1.5"))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def hue(bgr):
        hsv = cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + take("integers -18 19")) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    if take("coin") < 0.5:
        image, done = converted(image, beta=take("uniform -32 32")), "b"
    steps = [("s", saturation), ("h", hue), ("c", contrast)]
    if take("coin") >= 0.5:
        steps = [steps[2], steps[0], steps[1]]
    for name, step in steps:
        if take("coin") < 0.5:
            image, done = step(image), done + name
    return image[..., ::-1], done


@pytest.fixture(scope="module")
def colors():
    """Return colors with every level of every channel, all grays, and the corners of the cube."""
    levels = np.array([0, 1, 17, 64, 100, 127, 128, 180, 201, 254, 255], np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 11, 3)
    ramp = np.stack([np.arange(256)] * 3, -1).astype(np.uint8).reshape(-1, 1, 3).repeat(11, 1)
    return np.ascontiguousarray(np.concatenate([grid, ramp]))


def test_jitter_is_the_published_one_to_the_bit(colors):
    orders = set()
    before = colors.copy()
    for seed in range(250):
        draws = Draws(seed)
        out = jitter_color(colors, draws)
        expected, done = published(colors, draws.drawn)
        assert draws.drawn == []
        assert out.dtype == np.uint8
        assert (out == expected).all(), done
        orders.add(done)
    assert (colors == before).all()
    # with or without brightness, every subset of the other three, contrast first or last
    assert {"", "b", "csh", "shc", "bcsh", "bshc", "cs", "sc", "h", "s", "c"} <= orders
    assert len(orders) == 2 * (4 + 4 + 3)
