"""The training loop of one worker under torchrun, without Ray.

    torchrun --standalone --nproc-per-node GPUS -m jobs.bench.loop FOLDER PRESET KEY=VALUE ...

The benchmark `gpu` starts it on machines that have no Ray.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from jobs import config as configs
from pipeline.train import train


def main(folder: str, preset: str, *changes: str) -> None:
    """Train in a folder with a preset and changes to it."""
    Path(folder).mkdir()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(configs.load(preset, list(changes)), Path(folder))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
