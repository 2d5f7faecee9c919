"""Stages as a user might write them, correct and incorrect."""

import os
import signal
import time
import warnings
from pathlib import Path

import cv2


def darken(sample):
    """Multiply the image by a random factor."""
    factor = sample["random"].uniform(0.2, 0.9)
    return sample | {"image": cv2.convertScaleAbs(sample["image"], alpha=factor)}


def first_category_only(sample):
    truth = sample["truth"]
    kept = [[column[0]] for column in truth[1:]]
    return sample | {"truth": type(truth)(truth.maps, *kept)}


def warn(sample):
    warnings.warn("this image is dark", stacklevel=2)
    return sample


def gated(sample):
    """Wait until the file that M2F_TEST_GATE names holds a greater position than the sample's."""
    while int(Path(os.environ["M2F_TEST_GATE"]).read_text() or 0) <= sample["position"]:
        time.sleep(0.05)
    return sample


def recorded(sample):
    """Add the position, the epoch, and the key of the sample to a file of this process."""
    path = Path(os.environ["M2F_TEST_FOLDER"], f"seen-{os.getpid()}")
    with path.open("a") as file:
        file.write(f"{sample['position']} {sample['epoch']} {sample['key']}\n")
    return sample


def drop(sample):
    return None


def repeat(sample):
    return [sample, sample]


def another_key(sample):
    return sample | {"key": "other"}


def as_float(sample):
    return sample | {"image": sample["image"] / 255}


def half_the_image(sample):
    return sample | {"image": sample["image"][::2]}


def no_random(sample):
    sample.pop("random")
    return sample


def broken(sample):
    raise KeyError("depth")


def die(sample):
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(sample):
    """Die as a process does that writes to a full /dev/shm."""
    os.kill(os.getpid(), signal.SIGBUS)


def hang_alone(sample):
    """Leave the id of this process in a folder, and hang."""
    Path(os.environ["M2F_TEST_FOLDER"], str(os.getpid())).touch()
    return hang(sample)


def hang(sample):
    time.sleep(1000)


def hang_on_one_rank(sample):
    return hang(sample) if os.environ["RANK"] == "1" else sample


def broken_on_one_rank(sample):
    return broken(sample) if os.environ["RANK"] == "1" else sample


def die_on_one_rank(sample):
    return die(sample) if os.environ["RANK"] == "1" else sample


def wait_for_gate(sample):
    """Wait until the file that M2F_GATE names exists, from the position M2F_GATE_POSITION on."""
    is_beyond = sample["position"] >= int(os.environ["M2F_GATE_POSITION"])
    while is_beyond and not Path(os.environ["M2F_GATE"]).exists():
        time.sleep(0.05)
    return sample
