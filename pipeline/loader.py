"""The processes that run a stream ahead of the network."""

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader

STALL_TIMEOUT_S = 120


def loader(pipeline: wds.DataPipeline, workers: int, pin: bool) -> DataLoader:
    """Run the pipeline in `workers` processes (0: in this one); batches come in order."""
    if workers == 0:
        return DataLoader(pipeline, batch_size=None, pin_memory=pin)
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        prefetch_factor=4,
        timeout=STALL_TIMEOUT_S,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
